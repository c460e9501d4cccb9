"""The verb of planning."""

import argparse


def add_plan(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "plan",
        help="nnU-Net's plans -> BraTSPlans: with the papers' configurations, fitted to a GPU's memory",
        description="Keeps nnU-Net's own configurations. The papers' share their preprocessed data, all but "
        "lachinov_brain. Without a budget, patch and batch are the papers'; with one, the batch shrinks first, then "
        "the patch.",
    )
    parser.add_argument("dataset_id", type=int, metavar="ID", help="of a data set that nnU-Net has planned")
    parser.add_argument("-p", dest="source", default="nnUNetPlans", help="plans to start from (default: %(default)s)")
    parser.add_argument("-o", dest="name", default="BraTSPlans", help="name of the new plans (default: %(default)s)")
    parser.add_argument("--gpu-memory-gb", type=float, metavar="N", help="memory of each GPU")
    parser.add_argument(
        "--gpus",
        default="1",
        metavar="N",
        help="that share a batch: 4, or lyu_stage1=4,lyu_stage2=4 for some configurations (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace plans of that name that differ")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.planning.plan import plan

        plan(**{name: value for name, value in vars(options).items() if name not in ("verb", "run")})

    parser.set_defaults(run=run)
