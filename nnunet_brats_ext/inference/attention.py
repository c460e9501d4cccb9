"""Where a model looks, as NIfTI and as pictures, checkpoint by checkpoint."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_brats_ext import papers
from nnunet_brats_ext.inference.case_files import CaseFiles, check_images, find_image_files
from nnunet_brats_ext.inference.cases import ImageCases
from nnunet_brats_ext.inference.checkpoints import open_checkpoint, warn_of_code
from nnunet_brats_ext.inference.choices import SLIDING
from nnunet_brats_ext.inference.inner_maps import AttentionMaps, MapPredictor, ShownCase, ShownCheckpoint
from nnunet_brats_ext.inference.models import TrainedModel, chosen_model
from nnunet_brats_ext.inference.options import AttentionOptions
from nnunet_brats_ext.inference.predictor import find_device
from nnunet_brats_ext.inference.workers import Workers
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError, shorten
from nnunet_brats_ext.storage.images import read_grid, read_label_map
from nnunet_brats_ext.storage.output import staged
from nnunet_brats_ext.storage.parallel import progress_bar


def show_attention(
    images: Path | str, out: Path | str, model: Path | str | None = None, **options: Any
) -> dict[str, Path]:
    """Write a folder per case with what each fold and checkpoint of a model attends to; case -> folder.

    images: a folder of CASE_0000.nii.gz and so on. model: the folder of a trained model. options: the fields of
    `AttentionOptions`. Maps lie on the grid of the image files; they are 0 where no network has looked: outside the box
    around the head, and of a second stage outside its window. Cases that are done stay where a later one fails.
    """
    named: dict[str, Any] = {"images": images, "out": out, "model": model, **options}
    return attend(AttentionOptions(**named))


def attend(options: AttentionOptions) -> dict[str, Path]:
    """The same by its options."""
    model = chosen_model(options)
    if not options.trusted:
        warn_of_code(model.files)
    facts = papers.find_trainer(model.names[0])
    tiling = papers.find_paper(facts.paper).load(facts.attention).tiling if facts.attention else SLIDING
    predictor = MapPredictor(find_device(options.device), tiling)
    predictor.load(model)
    attention = find_attention(predictor)
    predictor.show_maps(attention.wrap)
    description = model.description
    files = select_cases(find_image_files(options.images, description), options.cases, options.images)
    require_previous(model, options.previous, options.images)
    check_images(files, model, [options.previous] if options.previous else [], processes=1)
    require_same_axes(files)
    if options.reference:
        require_reference(options.reference, files, description.ending)
    require_image_axes(predictor)
    channel, sequence = find_background(description, options.background)
    checkpoints = describe_checkpoints(predictor.checkpoints)
    with progress_bar("Attention", len(files) * len(checkpoints)) as advance:

        def maps_of_checkpoints(data: Tensor, properties: dict[str, Any]) -> Iterator[tuple[ShownCheckpoint, Tensor]]:
            for checkpoint, maps in zip(checkpoints, predictor.predict_each(data, properties), strict=True):
                yield checkpoint, maps
                advance()

        for case in ImageCases(files).read([predictor.description], list(files), Workers(0)):
            name = case.name
            data, properties = case.seen_by(predictor.description, options.previous, last=True)
            reference = options.reference / f"{name}{description.ending}" if options.reference else None
            shown = ShownCase(name, sequence, files[name][channel], reference, properties)
            # What other checkpoints have left there stays.
            others = [path.name.removesuffix(".nii.gz") for path in (options.out / name).glob("*.nii.gz")]
            with staged(options.out / name, others, overwrite=True) as folder:
                attention.show(shown, maps_of_checkpoints(data, properties), predictor, folder, options.slices)
    return {name: options.out / name for name in files}


def find_attention(predictor: MapPredictor) -> AttentionMaps:
    """What shows where the network of a trainer looks, as its paper names it; without one, an error names those."""
    facts = papers.find_trainer(predictor.trainer_name)
    if facts.attention:
        attention: AttentionMaps = papers.find_paper(facts.paper).load(facts.attention)
        if attention.applies(predictor.bare_network):
            return attention
    able = ", ".join(name for name, one in papers.trainers().items() if one.attention)
    raise UserError(f"the network of {predictor.trainer_name} has nothing to show here; those of {able} have")


def select_cases(found: CaseFiles, wanted: Sequence[str], images: Path) -> CaseFiles:
    if missing := [case for case in wanted if case not in found]:
        raise UserError(f"--cases {' '.join(missing)}: not in {images}, which holds {shorten(sorted(found))}")
    return {case: files for case, files in found.items() if not wanted or case in wanted}


def require_previous(model: TrainedModel, previous: Path | None, images: Path) -> None:
    """A second stage needs the label maps of the first, and a first stage has no use for any."""
    stage = model.previous_stage
    if stage is None and previous:
        raise UserError(f"-prev_stage_predictions {previous}: {model.names[2]} has no previous stage")
    if stage is None or previous:
        return
    own_trainer, plans, configuration = model.names
    trainer = papers.find_trainer(own_trainer).previous_stage or own_trainer
    raise UserError(
        f"{configuration} refines the label maps of {stage}: give their folder with -prev_stage_predictions. They come "
        f"from\n  nnunet_brats predict -i {images} -o FOLDER -d {model.folder.parent.name} -c {stage} -p {plans} "
        f"-tr {trainer}"
    )


def require_reference(folder: Path, cases: CaseFiles, ending: str) -> None:
    if missing := [case for case in cases if not (folder / f"{case}{ending}").is_file()]:
        raise UserError(
            f"{folder} lacks the label maps of {shorten(missing)}; "
            "predict these cases there, or leave them out of --cases"
        )
    for case, images in cases.items():
        image, *_ = images.values()
        file = folder / f"{case}{ending}"
        if difference := read_grid(image).difference(read_label_map(file)[1]):  # in full: damage is an error now
            raise UserError(f"{image} and {file} differ in {difference}; bring them to one grid")


def require_same_axes(cases: CaseFiles) -> None:
    """Maps lie on the grid of a case's first file, and are drawn over any of them."""
    if mixed := [case for case, files in cases.items() if len({read_grid(file).axes for file in files.values()}) > 1]:
        raise UserError(
            f"the sequences of {shorten(mixed)} have their axes in different orders or directions; `nnunet_brats "
            "convert` brings them to one grid"
        )


def require_image_axes(predictor: MapPredictor) -> None:
    if "Reorient" in (reader := predictor.plans_manager.image_reader_writer_class.__name__):
        raise UserError(f"{reader} turns images on reading, and maps would not lie on the files' grid")


def find_background(description: DatasetDescription, wanted: str | None) -> tuple[int, str]:
    """The number of the channel to draw, and the sequence that it shows; by default FLAIR, or the first."""
    sequences = description.acquired
    if wanted is not None and wanted not in sequences:
        raise UserError(f"--background {wanted}: the images are {', '.join(sequences)}")
    name = wanted or ("FLAIR" if "FLAIR" in sequences else sequences[0])
    return sequences.index(name), name


def describe_checkpoints(files: Sequence[Path]) -> list[ShownCheckpoint]:
    """A name for the files and a label for the pictures of each; the epoch is that which the checkpoint notes."""
    several = len({file.parent for file in files}) > 1
    shown = []
    for file in files:
        epoch = open_checkpoint(file).get("current_epoch")
        fold = file.parent.name
        label = f"epoch {epoch}" if not several else f"{fold.replace('_', ' ')}, epoch {epoch}"
        shown.append(ShownCheckpoint(f"{fold}_{file.stem}", label))
    return shown
