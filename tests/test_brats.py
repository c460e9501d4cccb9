"""The facts of BraTS: label schemes that lose nothing, heads, sequences by all their names."""

import numpy as np
import pytest

from nnunet_brats_ext.brats import LABEL_SCHEMES, SEQUENCE_NAMES, SEQUENCES, find_sequence, remap, to_regions
from nnunet_brats_ext.storage.errors import UserError


@pytest.mark.parametrize("scheme", LABEL_SCHEMES.values(), ids=LABEL_SCHEMES)
def test_a_scheme_is_bijective_and_its_regions_nest_in_the_order_of_painting(scheme):
    assert set(scheme.trained) == {0, *scheme.names}
    labels = np.array(sorted(scheme.released), np.uint8)
    np.testing.assert_array_equal(remap(remap(labels, scheme.released), scheme.trained), labels)
    assert set(scheme.paint) <= set(scheme.names) and len(scheme.paint) == len(scheme.regions)
    head = scheme.head
    assert head.has_regions and head.labels == scheme.paint
    for (name, region), label in zip(scheme.regions.items(), scheme.paint, strict=True):
        assert label in region, f"{name} paints one of its labels"
    painted = np.zeros(5, np.uint8)
    for mask, label in zip(to_regions(np.arange(5), scheme.regions).values(), scheme.paint, strict=True):
        painted[mask] = label
    own = [label for label in scheme.names if label in scheme.paint]
    np.testing.assert_array_equal(painted[own], own)


def test_a_label_that_the_mapping_lacks_is_an_error_and_no_background():
    with pytest.raises(UserError, match=r"labels \[3.0\] are not among \[0, 1, 2, 4\]"):
        remap(np.array([0, 3]), {0: 0, 1: 2, 2: 1, 4: 3})
    with pytest.raises(UserError, match=r"labels \[-1.0, 0.5\]"):
        remap(np.array([-1, 0.5]), {0: 0})
    assert remap(np.array([4.0, 0.0]), {0: 0, 4: 3}).tolist() == [3, 0]


def test_no_name_means_two_sequences():
    names = [name for sequence in SEQUENCES for name in SEQUENCE_NAMES[sequence]]
    assert len(set(names)) == len(names)
    assert all(find_sequence(name.upper()) == sequence for sequence in SEQUENCES for name in SEQUENCE_NAMES[sequence])
    assert find_sequence("ADC") is None
