"""The command `attention`: where a model looks, as NIfTI and as pictures, checkpoint by checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_brats_ext import papers
from nnunet_brats_ext.inference.cases import find_images, preprocess, previous_labels_missing
from nnunet_brats_ext.inference.inner_maps import Case, Look, MapPredictor, Member
from nnunet_brats_ext.inference.models import TrainedModel
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import read_grid
from nnunet_brats_ext.storage.output import staged
from nnunet_brats_ext.storage.parallel import progress_bar


@dataclass(frozen=True)
class Choice:
    """Which cases and slices to show.

    previous: folder of the label maps that a second stage refines. cases: default all. slices: axial, counted from 1;
    default the one with most tumour. background: the sequence to draw; default FLAIR, or the first. reference: folder
    of label maps to outline; default what each checkpoint predicts.
    """

    previous: Path | None = None
    cases: Sequence[str] = ()
    slices: Sequence[int] = ()
    background: str | None = None
    reference: Path | None = None


def show_attention(images: Path, out: Path, model: TrainedModel, choice: Choice, device: str = "cuda") -> None:
    """Write a folder per case with what each fold and checkpoint of a model attends to, as files and as pictures.

    Maps lie on the grid of the image files; they are 0 outside the box around the head, beyond which nnU-Net's
    networks see nothing. Cases that are done stay where a later one fails.
    """
    predictor = MapPredictor(torch.device(device))
    predictor.load(model.folder, model.folds, model.checkpoints)
    look = find_look(predictor)
    predictor.look_through(look.view)
    ending = predictor.dataset_json["file_ending"]
    cases = choose_cases(find_images(images, predictor.dataset_json), choice.cases, images)
    require_previous(model, choice.previous, list(cases), images, ending)
    if choice.reference:
        require_reference(choice.reference, cases, ending)
    require_image_axes(predictor)
    channel, sequence = find_sequence(predictor.dataset_json, choice.background)
    members = describe_members(predictor.checkpoints)
    with progress_bar("Attention", len(cases) * len(members)) as advance:

        def maps_of_members(data: Tensor, properties: dict[str, Any]) -> Iterator[tuple[Member, Tensor]]:
            for member, maps in zip(members, predictor.predict_each(data, properties), strict=True):
                yield member, maps
                advance()

        for name, data, properties in preprocess(predictor, cases, choice.previous, processes=0):
            reference = choice.reference / f"{name}{ending}" if choice.reference else None
            case = Case(name, sequence, Path(cases[name][channel]), reference, properties)
            # What other checkpoints have left there stays.
            others = [path.name.removesuffix(".nii.gz") for path in (out / name).glob("*.nii.gz")]
            with staged(out / name, others) as folder:
                look.show(case, maps_of_members(data, properties), predictor, folder, choice.slices)
    print(f"{len(cases)} cases shown in {out}")


def find_look(predictor: MapPredictor) -> Look:
    """What shows where the network of a trainer looks, as its paper names it; without one, an error names those."""
    facts = papers.find_trainer(predictor.trainer_name)
    if facts.attention:
        look: Look = papers.find_paper(facts.paper).load(facts.attention)
        if look.applies(predictor.bare_network):
            return look
    able = ", ".join(name for name, one in papers.trainers().items() if one.attention)
    raise UserError(f"the network of {predictor.trainer_name} has nothing to show here; those of {able} have")


def choose_cases(found: Mapping[str, list[str]], wanted: Sequence[str], images: Path) -> dict[str, list[str]]:
    if missing := [case for case in wanted if case not in found]:
        raise UserError(f"--cases {' '.join(missing)}: not in {images}, which holds {', '.join(sorted(found))}")
    return {case: files for case, files in found.items() if not wanted or case in wanted}


def require_previous(
    model: TrainedModel, previous: Path | None, cases: Sequence[str], images: Path, ending: str
) -> None:
    """A second stage needs the label maps of the first, and a first stage has no use for any."""
    stage = model.previous_stage
    if stage is None:
        if previous:
            raise UserError(f"-prev_stage_predictions {previous}: {model.names[2]} has no previous stage")
        return
    missing = previous_labels_missing(previous, cases, ending) if previous else []
    if previous and not missing:
        return
    own_trainer, plans, configuration = model.names
    trainer = papers.find_trainer(own_trainer).previous_stage or own_trainer
    lack = f"{previous} lacks {', '.join(missing)}" if previous else "give their folder with -prev_stage_predictions"
    raise UserError(
        f"{configuration} refines the label maps of {stage}: {lack}. They come from\n"
        f"  nnunet_brats predict -i {images} -o FOLDER -d {model.folder.parent.name} -c {stage} -p {plans} "
        f"-tr {trainer}"
    )


def require_reference(folder: Path, cases: Mapping[str, list[str]], ending: str) -> None:
    if missing := previous_labels_missing(folder, list(cases), ending):
        raise UserError(f"{folder} lacks the label maps of {', '.join(missing)}")
    for case, (image, *_) in cases.items():
        file = folder / f"{case}{ending}"
        if difference := read_grid(Path(image)).difference(read_grid(file)):
            raise UserError(f"{image} and {file} differ in {difference}")


def require_image_axes(predictor: MapPredictor) -> None:
    if "Reorient" in (reader := predictor.plans_manager.image_reader_writer_class.__name__):
        raise UserError(f"{reader} turns images on reading, and maps would not lie on the files' grid")


def find_sequence(dataset_json: Mapping[str, Any], wanted: str | None) -> tuple[int, str]:
    """The number of the channel to draw, and what it shows."""
    sequences = dataset_json.get("brats_sequences") or list(dataset_json["channel_names"].values())
    if wanted is not None and wanted not in sequences:
        raise UserError(f"--background {wanted}: the images are {', '.join(sequences)}")
    name = wanted or ("FLAIR" if "FLAIR" in sequences else sequences[0])
    return sequences.index(name), name


def describe_members(checkpoints: Sequence[Path]) -> list[Member]:
    """A name for the files and a label for the pictures of each; the epoch is what the checkpoint itself says."""
    several = len({file.parent for file in checkpoints}) > 1
    members = []
    for file in checkpoints:
        epoch = torch.load(file, map_location="cpu", weights_only=False, mmap=True)["current_epoch"]
        fold = file.parent.name
        label = f"epoch {epoch}" if not several else f"{fold.replace('_', ' ')}, epoch {epoch}"
        members.append(Member(f"{fold}_{file.stem}", label))
    return members
