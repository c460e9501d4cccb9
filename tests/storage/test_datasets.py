"""What a dataset.json says: every property from the file, every wrong value named with the file and the key."""

import json

import pytest
from release_folders import numbered

from nnunet_brats_ext.brats import LABEL_SCHEMES, SEQUENCE_NAMES, SEQUENCES
from nnunet_brats_ext.dataset_conversion.dataset_folder import dataset_json
from nnunet_brats_ext.dataset_conversion.layouts import LAYOUTS
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError

REGIONS = {"background": 0, "WT": [1, 2, 3], "TC": [2, 3], "ET": 3}
LABELS = {"background": 0, "ED": 1, "NCR": 2, "ET": 3}
GLIOMA = {
    "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"},
    "labels": REGIONS,
    "regions_class_order": [1, 2, 3],
    "file_ending": ".nii.gz",
}


def describe(**changes) -> DatasetDescription:
    return DatasetDescription({**GLIOMA, **changes})


def channels(*names: str) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


# ---- files ----------------------------------------------------------------------------------------------------------


def test_it_is_read_from_a_file_or_from_its_folder(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(GLIOMA))
    assert DatasetDescription.read(path) == DatasetDescription.read(tmp_path) == DatasetDescription(GLIOMA, path)
    assert DatasetDescription.find(tmp_path / "nowhere", tmp_path) == DatasetDescription(GLIOMA, path)
    assert DatasetDescription.find(tmp_path / "nowhere") is None
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        DatasetDescription.read(tmp_path / "nowhere")


@pytest.mark.parametrize("release", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("normalise", [None, "zscore-volume"])
def test_what_convert_writes_is_understood(release, normalise):
    release = numbered(release)
    content = json.loads(json.dumps(dataset_json(release, "Dataset137_X", 5, normalise)))
    described = DatasetDescription(content)
    assert described.sequences == release.sequences
    assert described.normalisation == normalise
    assert [described.channel(sequence) for sequence in release.sequences] == list(range(len(release.sequences)))
    assert described.scheme.regions == release.numbering.regions
    assert described.head().channels[-1:] == release.numbering.head.channels[-1:]
    assert described.head().has_regions == described.nested == (len(release.numbering.regions) > 1)
    assert described.labels == {0, *release.numbering.names}
    assert (described.name, described.release, described.ending) == ("Dataset137_X", release.name, ".nii.gz")


def test_the_name_is_that_of_nnunets_folder_and_elsewhere_what_the_file_says(tmp_path):
    assert describe().name == ""
    assert describe(name="Dataset137_BraTS").name == "Dataset137_BraTS"
    renamed = DatasetDescription({"name": "Dataset137_BraTS"}, tmp_path / "Dataset138_Renamed" / "dataset.json")
    assert renamed.name == "Dataset138_Renamed"
    assert DatasetDescription({"name": "BraTS"}, tmp_path / "predictions" / "dataset.json").name == "BraTS"


def test_folds_are_those_that_nnunet_reads_or_those_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    raw, preprocessed = (tmp_path / part / "Dataset137_X" for part in ("raw", "preprocessed"))
    for folder in (raw, preprocessed):
        folder.mkdir(parents=True)
    described = DatasetDescription(GLIOMA | {"name": "BraTS, by its authors"}, raw / "dataset.json")
    assert described.folds is None
    split = {"train": ["a"], "val": ["b"]}
    (raw / "splits_final.json").write_text(json.dumps([split] * 2))
    assert described.folds == 2
    (preprocessed / "splits_final.json").write_text(json.dumps([split] * 3))
    assert described.folds == 3


# ---- channels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_a_sequence_is_found_by_all_its_names(sequence):
    for name in SEQUENCE_NAMES[sequence]:
        for written in (name, name.upper(), f" {name[0]}-{name[1:]}"):
            described = describe(channel_names=channels("ADC", written))
            assert described.sequences == ("ADC", sequence)
            assert described.channel(sequence) == described.channel(written) == 1


def test_normalised_channels_still_know_their_sequences():
    described = describe(channel_names=channels(*["noNorm"] * 4), brats_sequences=["FLAIR", "t1n", "t1c", "t2w"])
    assert described.sequences == ("FLAIR", "T1", "T1ce", "T2")
    assert described.channel("T1ce") == 2
    assert described.normalisation == "percentile-minmax", "which was the only one before they were noted"
    assert describe().normalisation is None
    assert describe(channel_names=channels("noNorm", "noNorm")).sequences == ("noNorm", "noNorm")


def test_a_sequence_that_no_channel_shows_is_named_with_the_channels():
    with pytest.raises(UserError, match=r"dataset.json: no channel shows T1ce; channel_names are \['CT'\]. Name the"):
        describe(channel_names=channels("CT")).channel("T1ce")


# ---- labels ---------------------------------------------------------------------------------------------------------


def test_regions_and_labels_are_declared_without_the_ignore_label():
    described = describe(labels={**REGIONS, "ignore": 4})
    assert described.declared == {"background": (0,), "WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)}
    assert described.labels == {0, 1, 2, 3}
    assert described.nested and described.has_ignore_label and described.paint == (1, 2, 3)
    plain = describe(labels=LABELS, regions_class_order=None)
    assert not plain.nested and not plain.has_ignore_label and plain.paint == ()


def test_nested_regions_have_a_region_head_and_channels_may_say_otherwise():
    region_head = describe().head()
    assert region_head == describe().head(3) == LABEL_SCHEMES["glioma_2017"].head
    softmax = describe().head(4)
    assert softmax.channels == ((0,), (1,), (2,), (3,)) and softmax.names[-1] == "ET" and not softmax.has_regions
    with pytest.raises(UserError, match=r"dataset.json: 5 channels do not fit the labels .*, which need 3 or 4"):
        describe().head(5)


def test_plain_labels_have_a_label_head():
    head = describe(labels=LABELS, regions_class_order=None).head()
    assert (head.names, head.labels) == (("background", "ED", "NCR", "ET"), (1, 2, 3))
    with pytest.raises(UserError, match=r"3 channels do not fit the labels .*, which need 4"):
        describe(labels=LABELS).head(3)
    assert describe(labels={"background": 0, "ET": 1}).head().labels == (1,), "a model of ET alone may call it 1"


def test_labels_that_are_not_numbered_as_trained_are_refused():
    with pytest.raises(UserError, match=r"dataset.json: label NCR is \[1\], but 2 as trained; convert the data set"):
        describe(labels={"background": 0, "NCR": 1, "ED": 2, "ET": 4}).head()
    with pytest.raises(UserError, match=r"regions_class_order \[1\] does not fit the regions \['WT', 'TC', 'ET'\]"):
        describe(regions_class_order=[1]).head()


@pytest.mark.parametrize("name", LABEL_SCHEMES)
def test_the_scheme_is_recognised_by_its_regions(name):
    scheme = LABEL_SCHEMES[name]
    order = list(scheme.paint) if len(scheme.regions) > 1 else None
    described = describe(labels=scheme.nnunet_labels(), regions_class_order=order)
    assert described.scheme.regions == scheme.regions
    renamed = {f"my {region}": value for region, value in scheme.nnunet_labels().items()}
    assert list(describe(labels=renamed).scheme.regions.values()) == list(scheme.regions.values())


def test_other_labels_have_no_scheme():
    for labels in (LABELS, {"background": 0, "A": [1, 2], "B": 2, "C": 3}):
        assert describe(labels=labels).scheme is None


# ---- wrong values ---------------------------------------------------------------------------------------------------

WRONG = [
    ("channel_names", dict(channel_names=["T1"]), r"channel_names is \['T1'\]; expected \{"),
    ("channel_names", dict(channel_names={"1": "T1"}), r"channel_names \{'1': 'T1'\} should be \{\"0\": NAME"),
    ("channel_names", dict(channel_names={"0": 5}), r"channel_names \{'0': 5\} should be"),
    ("sequences", dict(brats_sequences="T1"), "brats_sequences is 'T1'; expected a name for each of"),
    ("sequences", dict(brats_sequences=["T1"]), r"brats_sequences is \['T1'\]; expected a name for each"),
    ("sequences", dict(brats_sequences=[1, 2, 3, 4]), r"brats_sequences is \[1, 2, 3, 4\]; expected a name"),
    ("declared", dict(labels=["WT"]), r"labels is \['WT'\]; expected \{"),
    ("declared", dict(labels={"WT": "1"}), r"labels\['WT'\] is '1'; expected a number or a list of numbers"),
    ("declared", dict(labels={"WT": []}), r"labels\['WT'\] is \[\]"),
    ("declared", dict(labels={"WT": [1, 2.5]}), r"labels\['WT'\] is \[1, 2.5\]"),
    ("declared", dict(labels={"WT": True}), r"labels\['WT'\] is True"),
    ("has_ignore_label", dict(labels=None), "labels is None"),
    ("paint", dict(regions_class_order="123"), "regions_class_order is '123'; expected a list of labels"),
    ("paint", dict(regions_class_order=[1, "2"]), "regions_class_order is"),
    ("ending", dict(file_ending=5), 'file_ending is 5; expected ".nii.gz"'),
    ("name", dict(name=137), "name is 137; expected str"),
    ("release", dict(brats_release=2020), "brats_release is 2020; expected str"),
]


@pytest.mark.parametrize(("what", "change", "message"), WRONG, ids=[f"{what} {change}" for what, change, _ in WRONG])
def test_a_wrong_value_is_named_with_file_and_key(tmp_path, what, change, message):
    path = tmp_path / "dataset.json"
    with pytest.raises(UserError, match=f"^{path}: {message}"):
        getattr(DatasetDescription({**GLIOMA, **change}, path), what)


@pytest.mark.parametrize(
    ("what", "key"),
    [
        ("channel_names", "channel_names"),
        ("sequences", "channel_names"),
        ("declared", "labels"),
        ("labels", "labels"),
        ("ending", "file_ending"),
    ],
)
def test_a_missing_key_is_named_with_an_example(tmp_path, what, key):
    content = {name: value for name, value in GLIOMA.items() if name != key}
    with pytest.raises(UserError, match=f"dataset.json lacks '{key}', such as "):
        getattr(DatasetDescription(content, tmp_path / "dataset.json"), what)
