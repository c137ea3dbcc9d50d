"""The scenes: what is drawn is what the caption says, the judge reads real scenes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

pytest.importorskip("sklearn")

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.scenes import check, judge, quality
from benchmarks.scenes.caption import BACKGROUNDS, COLOURS, NOTHING, PLACES, SHAPES, SIZES, Layouts, Scene, Thing
from benchmarks.scenes.data import PAINT, draw, random_layouts
from benchmarks.scenes.model import VOCABULARY, condition, pack, position_ids, unpack, words
from benchmarks.scenes.sample import ScenesPipeline, sample
from tests.benchmarks.small_scenes import small_transformer

EXAMPLE = "large red circle top left, small blue star bottom right, on grass"
CENTRES = {"top left": (8, 8), "top right": (8, 24), "bottom left": (24, 8), "bottom right": (24, 24)}

scenes = st.builds(
    lambda places, kinds, background: Scene(
        tuple(Thing(*kind, place) for place, kind in zip(places, kinds, strict=False)), background
    ),
    st.permutations(PLACES),
    st.lists(st.tuples(*map(st.sampled_from, (SIZES, COLOURS, SHAPES))), min_size=1, max_size=4),
    st.sampled_from(BACKGROUNDS),
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- captions


@given(scenes)
def test_a_caption_is_read_back_as_its_scene_and_so_are_its_numbers(scene: Scene) -> None:
    assert Scene.of(scene.caption()) == scene
    assert Layouts.of([scene]).scenes() == [scene]


def test_objects_may_be_named_in_any_order() -> None:
    scene = Scene.of("small blue star bottom right,  Large red circle top left, on grass")
    assert scene.caption() == EXAMPLE
    assert scene.things[0] == Thing("large", "red", "circle", "top left")


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        ("large crimson circle top left, on grass", "'crimson': expected a colour, one of red, green, blue"),
        ("huge red circle top left, on grass", "'huge': expected a size, one of small, large"),
        ("large red cube top left, on grass", "'cube': expected a shape, one of circle, square"),
        ("large red circle top, on grass", "'top': expected a place, one of top left, top right"),
        ("large red, on grass", "'': expected a shape, one of circle"),
        ("large red circle top left, on lava", "'lava': expected a background, one of sky, night"),
        ("large red circle top left", "'large red circle top left' ends the caption: expected 'on' and one of sky"),
        ("on grass", "0 objects: expected 1 to 4"),
        ("large red ring top left, small red ring top left, on sky", "'top left' is named 2 times: expected one"),
    ],
)
def test_a_caption_that_cannot_be_read_is_refused_with_the_word_and_what_is_allowed(
    caption: str, sentence: str
) -> None:
    with pytest.raises(ValueError) as error:
        Scene.of(caption)
    assert str(error.value).startswith(sentence)


# --- drawing


def nearest_paint(pixel: torch.Tensor) -> str:
    distances = (torch.tensor(PAINT) / 255 - pixel).norm(dim=1)
    return COLOURS[int(distances.argmin())]


@given(scenes)
def test_the_middle_of_a_place_has_the_colour_of_its_object(scene: Scene) -> None:
    image = draw(Layouts.of([scene]), seeded())[0]
    for thing in scene.things:
        if thing.shape == "ring" or thing.size == "small":
            continue
        row, column = CENTRES[thing.place]
        assert nearest_paint(image[:, row, column]) == thing.colour


@given(scenes)
def test_only_the_places_with_objects_differ_from_the_background(scene: Scene) -> None:
    layouts = Layouts.of([scene])
    with_objects = draw(layouts, seeded())[0]
    without = draw(replace(layouts, things=torch.full_like(layouts.things, NOTHING)), seeded())[0]
    taken = {thing.place for thing in scene.things}
    for place, (row, column) in CENTRES.items():
        here = slice(None), slice(row - 8, row + 8), slice(column - 8, column + 8)
        assert torch.equal(with_objects[here], without[here]) == (place not in taken)


def covered(size: str, shape: str) -> torch.Tensor:
    """Where the object of 64 drawings stands: those of its pixels that are bright, on the dark night."""
    layouts = Layouts.of([f"{size} white {shape} top left, on night"] * 64)
    return draw(layouts, seeded())[:, :, :16, :16].amin(dim=1) > 0.6


def test_shapes_and_sizes_cover_what_their_names_say() -> None:
    areas = {(size, shape): covered(size, shape).sum(dim=(1, 2)) for size in SIZES for shape in SHAPES}
    for shape in SHAPES:
        assert areas["large", shape].min() > 1.3 * areas["small", shape].float().mean()
    circle = areas["large", "circle"].float().mean()
    assert abs(circle / (torch.pi * 6.3**2) - 1) < 0.1
    for shape in ("ring", "cross", "star", "triangle"):
        assert areas["large", shape].float().mean() < 0.8 * circle
    middle = (slice(None), slice(7, 9), slice(7, 9))
    assert not covered("large", "ring")[middle].any()
    assert covered("large", "star")[middle].all() and covered("large", "cross")[middle].all()
    widths = covered("large", "triangle").float().sum(dim=2).mean(dim=0)
    assert (widths[2:10].diff() > 0.5).all() and widths[14:].max() == 0


def test_random_scenes_hold_everything_about_equally_often() -> None:
    layouts = random_layouts(4000, seeded())
    present = layouts.things[..., 0] != NOTHING
    counts = present.sum(dim=1).bincount(minlength=5) / 4000
    assert counts[0] == 0 and counts[1:].min() > 0.2
    assert (present.float().mean(dim=0) - 0.625).abs().max() < 0.05
    for kind, names in enumerate((SHAPES, COLOURS, SIZES)):
        shares = layouts.things[..., kind][present].bincount() / present.sum()
        assert len(shares) == len(names) and (shares * len(names) - 1).abs().max() < 0.15


# --- the transformer's inputs


def test_packing_is_undone_by_unpacking_and_a_token_is_the_patch_that_its_position_id_names() -> None:
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(unpack(pack(images)), images)
    image = torch.zeros(1, 3, 32, 32)
    image[0, :, 6:8, 10:12] = 1.0
    lit = pack(image)[0].amin(dim=-1) > 0
    assert position_ids()[1][lit].tolist() == [[0.0, 3.0, 5.0]]


def test_the_words_are_the_caption_place_by_place() -> None:
    layouts = Layouts.of([EXAMPLE])
    named = [VOCABULARY[row] for row in words(layouts)[0]]
    empty = ["nothing"] * 3
    assert named == [
        *("large", "red", "circle", "top left", *empty, "top right", *empty, "bottom left"),
        *("small", "blue", "star", "bottom right", "grass"),
    ]
    assert position_ids()[0][:, 0].tolist() == [1.0] * 4 + [2.0] * 4 + [3.0] * 4 + [4.0] * 4 + [0.0]
    assert not position_ids()[0][:, 1:].any()


def test_the_conditioning_is_one_hot_and_a_dropped_caption_says_nothing() -> None:
    layouts = Layouts.of([EXAMPLE, EXAMPLE])
    text, pooled = condition(layouts, torch.tensor([False, True]))
    assert text.shape == (2, 17, 24) and pooled.shape == (2, 6)
    assert torch.equal(text[0].argmax(dim=1), words(layouts)[0]) and text[0].sum() == 17
    assert (text[1].argmax(dim=1) == VOCABULARY.index("nothing")).all() and text[1].sum() == 17
    assert pooled.argmax(dim=1).tolist() == [BACKGROUNDS.index("grass"), 5]


# --- sampling


def test_the_pipeline_calls_the_branches_as_diffusers_does() -> None:
    transformer = small_transformer()
    calls: list[dict[str, torch.Tensor]] = []
    transformer.register_forward_pre_hook(lambda _, __, inputs: calls.append(inputs), with_kwargs=True)
    images = sample(transformer, [EXAMPLE, "small pink ring top right, on sky"], steps=3, progress=False)
    assert images.shape == (2, 3, 32, 32) and images.min() >= 0 and images.max() <= 1
    conditional, unconditional = calls[::2], calls[1::2]
    assert [round(float(call["timestep"][0]), 3) for call in conditional] == [1.0, 0.667, 0.333]
    for one, other in zip(conditional, unconditional, strict=True):
        assert one["hidden_states"] is other["hidden_states"]
        assert one["encoder_hidden_states"] is conditional[0]["encoder_hidden_states"]
        assert not other["encoder_hidden_states"][..., 1:].any()
    assert len({id(call["hidden_states"]) for call in conditional}) == 3


def test_a_sample_is_the_same_again_and_from_one_batch_for_both_branches() -> None:
    transformer = small_transformer()
    images = sample(transformer, EXAMPLE, steps=3, progress=False)
    assert torch.equal(images, sample(transformer, [Scene.of(EXAMPLE)], steps=3, progress=False))
    together = sample(transformer, EXAMPLE, steps=3, batched_cfg=True, progress=False)
    torch.testing.assert_close(images, together, atol=1e-4, rtol=0)
    assert not torch.equal(images, sample(transformer, EXAMPLE, steps=3, seed=1, progress=False))


def test_guidance_leads_from_the_unconditional_velocity_past_the_conditional_one() -> None:
    transformer, layouts = small_transformer(), Layouts.of([EXAMPLE])
    noise = torch.randn(1, 256, 12, generator=seeded(7))
    text_ids, image_ids = position_ids()

    def velocity(dropped: bool) -> torch.Tensor:
        text, pooled = condition(layouts, torch.tensor([dropped]))
        with torch.no_grad():
            return transformer(noise, text, pooled, torch.ones(1), image_ids, text_ids, return_dict=False)[0]

    # one step is one Euler step from time 1 to time 0
    wanted = unpack(noise - (3.0 * velocity(False) - 2.0 * velocity(True)))
    seen = sample(transformer, layouts, steps=1, guidance=3.0, seed=7, progress=False)
    torch.testing.assert_close(seen, wanted, atol=1e-5, rtol=0)


def test_pil_pictures() -> None:
    pipeline = ScenesPipeline(small_transformer(), FlowMatchEulerDiscreteScheduler())
    pipeline.set_progress_bar_config(disable=True)
    assert [picture.size for picture in pipeline(EXAMPLE, num_inference_steps=1).images] == [(32, 32)]
    with pytest.raises(ValueError, match="output_type='np'"):
        pipeline(EXAMPLE, num_inference_steps=1, output_type="np")


# --- the judge


@pytest.fixture(scope="module")
def quick_judge() -> judge.Judge:
    return judge.load_judge(800)


def test_the_judge_reads_scenes_it_was_not_trained_on(quick_judge: judge.Judge) -> None:
    images, layouts = check.held_out(300)
    assert quick_judge.accuracy(images, layouts) > 0.9
    assert quick_judge.attribute_accuracy(images, layouts)["background"] > 0.98
    shuffled = Layouts(layouts.things.flip(0), layouts.backgrounds.flip(0))
    assert quick_judge.accuracy(images, shuffled) < 0.5
    assert quick_judge.whole_accuracy(images, shuffled) < 0.02
    assert quick_judge.features(images).shape == (300, 73)


def test_accuracy_is_the_share_of_attributes_that_are_right(
    monkeypatch: pytest.MonkeyPatch, quick_judge: judge.Judge
) -> None:
    # seen: a wrong colour, a wrong size, and an object too many in the first; all right in the second
    seen = Layouts.of(
        [f"large red star top right, {EXAMPLE.replace('red', 'pink').replace('small', 'large')}", EXAMPLE]
    )
    monkeypatch.setattr(quick_judge, "read", lambda images: seen)
    wanted, images = Layouts.of([EXAMPLE, EXAMPLE]), torch.zeros(2, 3, 32, 32)
    # 2 objects of 3 attributes, 2 empty places, 1 background in each
    assert quick_judge.accuracy(images, wanted) == pytest.approx(1 - 3 / 18)
    assert quick_judge.whole_accuracy(images, wanted) == 0.5
    wrong = {"shape": 1 / 8, "colour": 1 / 4, "size": 1 / 4, "background": 0.0}
    assert quick_judge.attribute_accuracy(images, wanted) == {name: 1 - share for name, share in wrong.items()}


@pytest.mark.slow
def test_the_whole_judge_reads_real_scenes_nearly_without_mistakes() -> None:
    images, layouts = check.held_out(2000)
    assert judge.load_judge().accuracy(images, layouts) >= 0.995


def test_samples_are_shown_beside_real_scenes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick_judge: judge.Judge, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "load_judge", lambda: quick_judge)
    monkeypatch.setattr(check, "sample", lambda transformer, layouts: 1 - check.held_out(len(layouts))[0])
    check.check_samples(torch.nn.Identity(), 9, tmp_path / "samples.png")
    picture = Image.open(tmp_path / "samples.png")
    assert picture.size == (8 * 66 * 3, 2 * 34 * 3)
    real = check.held_out(9)[0][0, :, 16, 16].mul(255).round().tolist()
    for x, wanted in ((17, [255 - value for value in real]), (17 + 32, real)):
        seen = picture.getpixel((3 * x + 1, 3 * 17 + 1))
        assert all(abs(a - b) <= 1 for a, b in zip(seen, wanted, strict=True))
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("judge on real: 9") and printed[2].startswith("judge on samples: ")


def test_quality_beside_uncached_scenes(quick_judge: judge.Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "load_judge", lambda: quick_judge)
    monkeypatch.setattr(quality, "REAL", 100)
    pictures, layouts = check.held_out(12)
    reference = quality.SceneReference(pictures, layouts)
    same = reference.quality(pictures)
    assert (same.psnr_db, same.ssim, same.frechet_uncached) == pytest.approx((99.0, 1.0, 0.0), abs=1e-6)
    assert same.accuracy == quick_judge.accuracy(pictures, layouts)
    noise = torch.rand(pictures.shape, generator=torch.Generator().manual_seed(0))
    noisy = (pictures + 0.4 * (noise - 0.5)).clamp(0, 1)
    errors = (noisy.double() - pictures.double()).square().flatten(1).mean(dim=1)
    worse = reference.quality(noisy)
    assert worse.psnr_db == pytest.approx(float((-10 * errors.log10()).mean()), abs=1e-3)
    assert worse.ssim < 0.99 and worse.frechet_uncached > 1
