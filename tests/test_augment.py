"""Augmentation: torchvision's own pixels for a seed, whatever else draws, in any batch and in any thread."""

import typing
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import EngineError
from pipeline.readers.augment import View, Views, augment, seed_of, seeds_of
from pipeline.readers.transforms import AugmentConfig, Transform

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = [
    typing.get_args(kind.model_fields["name"].annotation)[0] for kind in typing.get_args(typing.get_args(Transform)[0])
]


def config(*transforms: dict[str, Any]) -> AugmentConfig:
    return TypeAdapter(AugmentConfig).validate_python(transforms)


SOME = config({"name": "random_resized_crop", "scale": [0.5, 1]}, {"name": "horizontal_flip"}, {"name": "rand_augment"})


def images(count: int, *, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 24, 32, channels), dtype=np.uint8)


def keys(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (count, 16), dtype=np.uint8).view("S16").reshape(-1)


def test_the_transforms_of_the_issue_are_there() -> None:
    assert {"random_resized_crop", "horizontal_flip", "rotation", "color_jitter", "rand_augment", "trivial_augment",
            "random_erasing"} <= set(NAMES)  # fmt: skip


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_torchvision_under_that_seed_and_torchs_own_generator_stays(
    name: str, channels: int
) -> None:
    transforms, before = config({"name": name}), images(6, channels=channels)
    state = torch.default_generator.get_state()
    found = augment(before, transforms, seeds=range(6))
    assert torch.equal(torch.default_generator.get_state(), state)
    assert found.dtype == np.uint8
    assert found.shape == before.shape
    with torch.random.fork_rng(devices=[]):
        for seed, image, own in zip(range(6), before, found, strict=True):
            torch.manual_seed(seed)
            plain = transforms[0].build((24, 32))(torch.from_numpy(image.transpose(2, 0, 1).copy()))
            np.testing.assert_array_equal(own, plain.permute(1, 2, 0).numpy())


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(8)), st.integers(1, 8), st.integers(0, 2**63 - 1))
def test_a_sample_depends_on_its_seed_alone(order: list[int], size: int, first: int) -> None:
    pixels, seeds = images(8), [(first + 7 * row) % 2**63 for row in range(8)]
    whole = augment(pixels, SOME, seeds=seeds)
    torch.rand(5)  # somebody else draws
    parts = [order[start : start + size] for start in range(0, 8, size)]
    found = [augment(pixels[part], SOME, seeds=[seeds[row] for row in part]) for part in parts]
    np.testing.assert_array_equal(np.concatenate(found), whole[order])


def test_threads_do_not_disturb_each_other_nor_whoever_draws_meanwhile() -> None:
    pixels = images(60)
    expected = augment(pixels, SOME, seeds=range(60))
    torch.manual_seed(3)
    drawn = torch.rand(2000)
    torch.manual_seed(3)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(augment, pixels[row : row + 1], SOME, seeds=[row]) for row in range(60)]
        meanwhile = torch.cat([torch.rand(1) for _ in range(2000)])
        found = np.concatenate([one.result() for one in waiting])
    np.testing.assert_array_equal(found, expected)
    assert torch.equal(meanwhile, drawn)


def test_pixels_that_cannot_be_written_are_left_as_they_are() -> None:
    pixels = images(4)
    pixels.flags.writeable = False
    before = pixels.copy()
    augment(pixels, SOME, seeds=range(4))
    np.testing.assert_array_equal(pixels, before)


def test_seeds_differ_by_seed_number_and_key_and_are_those_of_a_formula() -> None:
    import hashlib

    some = keys(3)
    found = {seed_of(seed, number, key.tobytes()) for seed in (0, 1) for number in (0, 1) for key in some}
    assert len(found) == 12
    assert all(0 <= seed < 2**63 for seed in found)
    data = b"4:11:" + some[1].tobytes()
    assert seeds_of(4, 11, some)[1] == int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) // 2
    assert seed_of(1, 12, b"") != seed_of(11, 2, b"")


def test_a_key_that_ends_in_zeros_is_hashed_whole() -> None:
    short = np.array([b"abc"], "S16")
    assert seeds_of(0, 0, short) == [seed_of(0, 0, b"abc" + 13 * b"\0")]


def test_a_view_is_augmentation_by_its_number_and_can_be_made_again_from_its_settings() -> None:
    views = Views(count=3, augment=SOME, seed=5)
    pixels, own = images(5), keys(5)
    found = views.view(2)(pixels, own)
    np.testing.assert_array_equal(found, augment(pixels, SOME, seeds=seeds_of(5, 2, own)))
    again = View.model_validate_json(views.view(2).model_dump_json())
    np.testing.assert_array_equal(found, again(pixels, own))
    assert not np.array_equal(found, views.view(1)(pixels, own))


def test_a_view_of_another_torchvision_is_refused() -> None:
    view = View(augment=SOME, number=0, torchvision="0.1")
    with pytest.raises(
        EngineError, match=r"view 0: expected torchvision 0\.1, got .* Install torchvision 0\.1, or extract"
    ):
        view(images(1), keys(1))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"name": "flip"}, "flip"),
        ({"name": "horizontal_flip", "p": 2}, "less than or equal to 1"),
        ({"name": "horizontal_flip", "q": 1}, "Extra inputs"),
        ({"name": "random_resized_crop", "scale": [1, 0.5]}, "expected the smaller number first"),
        ({"name": "gaussian_blur", "kernel_size": 4}, "Input should be 3, 5"),
    ],
)
def test_wrong_transforms_are_refused(transform: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(transform)
    assert message in str(caught.value)
