"""Folds with fewer training cases, which `nnunet_brats filter-cases` writes and names in the plans."""

from pathlib import Path

from nnunet_brats_ext.dataset_conversion.case_filtering import SPLITS_FILE
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import read_splits
from nnunet_brats_ext.training.seams import PlainTrainer


class ReducedFolds(PlainTrainer):
    """Mixin: trains on the folds of the file that the configuration names; validation cases are nnU-Net's."""

    keys_read = (SPLITS_FILE,)

    def do_split(self) -> tuple[list[str], list[str]]:
        training, validation = super().do_split()
        if (name := self.configuration_manager.configuration.get(SPLITS_FILE)) is None:
            return training, validation
        path = Path(self.preprocessed_dataset_folder_base, name)
        splits = read_splits(path)
        if self.fold not in range(len(splits)):
            raise UserError(
                f"{path} has {len(splits)} folds, so there is no fold {self.fold}; train one of 0 to {len(splits) - 1}"
            )
        kept = splits[self.fold]
        if kept["val"] != validation or not set(kept["train"]) <= set(training):
            raise UserError(f"{path} was made from other folds: run `nnunet_brats filter-cases` again")
        self.print_to_log_file(f"{path.name}: {len(kept['train'])} of {len(training)} training cases")
        return kept["train"], validation
