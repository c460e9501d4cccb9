"""The verbs of trained systems: `bundle`, `inspect`, `segment` and `container`."""

import sys

from rich.console import Console

from nnunet_brats_ext.bundles.options import BundleOptions, ContainerOptions, InspectOptions, SegmentOptions
from nnunet_brats_ext.cli.imports import quick_imports

MB = 1e6


def run_bundle(options: BundleOptions) -> None:
    with quick_imports():
        from nnunet_brats_ext.bundles.writing import bundle_sources

    written = bundle_sources(options)
    count = sum(len(model.weights) for model in written.system.models.values())
    print(
        f"{written.file}: {written.bytes / MB:.0f} MB, where the checkpoints have {written.before / MB:.0f} MB; "
        f"models: {len(written.system.models)}, networks: {count}"
    )
    if options.licence is None:
        print("It states no licence: name the one under which you hand it on with --licence")


def run_inspect(options: InspectOptions) -> None:
    from nnunet_brats_ext.bundles.inspection import inspect_file

    found = inspect_file(options)
    print("".join(letter for letter in found.card if letter.isprintable() or letter == "\n"))
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{len(found.sizes)} files, {sum(found.sizes.values()) / MB:.1f} MB:")
    for name, size in found.sizes.items():
        console.print(f"  {size:>12,}  {name}")
    smaller = found.system.smaller_systems()
    if len(smaller) > 1:
        console.print("rather than exceed --time-limit, `segment` computes less, in this order:")
        for one in smaller[1:]:
            console.print(f"  {found.system.describe_smaller(one)}")
    if options.verify:
        console.print("every byte is as the sums in the file say")
    for path in found.written:
        console.print(f"{path}: nnUNetv2_install_pretrained_model_from_zip {path}")
    for name, model in found.system.models.items() if found.written else ():
        if model.differs_by_fold:
            console.print(f"{name}: its folds have other checkpoints; nnUNetv2_predict takes one -chk for all its -f")


def run_segment(options: SegmentOptions) -> int:
    with quick_imports():
        from nnunet_brats_ext.bundles.segmentation import segment_patients
        from nnunet_brats_ext.inference.predictor import find_device

    if find_device(options.device).type == "cpu" and options.device is None:
        say("torch sees no GPU on this machine: the CPU is used, which takes longer")
    done = segment_patients(options, say)
    if done.before:
        print(f"in {done.out} already: {len(done.before)}; --overwrite segments them anew")
    print(f"segmented cases in {done.out}: {len(done.patients)}" + (f"; look at {done.page}" if done.page else ""))
    if done.failed:
        failed = ", ".join(done.failed)
        print(f"nnunet_brats segment: failed, and not in {done.out}: {failed}", file=sys.stderr)
    return 1 if done.failed else 0


def say(line: str) -> None:
    print(line, flush=True)


def run_container(options: ContainerOptions) -> None:
    from nnunet_brats_ext.bundles.containers import make_container

    files = make_container(options)
    size = sum(path.stat().st_size for path in files)
    print(
        f"{len(files)} files, {size / MB:.0f} MB in {options.out}; README.md there has the commands to build and to run"
    )
