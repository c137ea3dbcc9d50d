"""The digits model of few steps: a LoRA on the trained one, which draws in one call a step and few steps."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("peft")
pytest.importorskip("tqdm")

from benchmarks.comparison.models import MODELS, blocks_of
from benchmarks.digits import distill
from benchmarks.digits.judge import load_judge
from benchmarks.digits.model import FEW_STEPS, load_few_steps, load_transformer
from benchmarks.digits.sample import load_few_step_pipeline, load_pipeline


def psnr(images: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(-10 * (images - wanted).square().mean().log10())


def test_few_calls_come_nearer_to_the_guided_picture_than_more_of_the_trained_model() -> None:
    model, few, trained = MODELS["digits-distilled"], load_few_step_pipeline(), load_pipeline()
    for pipeline in (few, trained):
        pipeline.set_progress_bar_config(disable=True)
    guided = MODELS["digits"]
    wanted = guided.draw(trained, 0, 10, 20)
    drawn = {steps: model.draw(few, 0, 10, steps) for steps in (1, 4, 8)}
    assert all(load_judge().accuracy(images, torch.arange(10)) == 1 for images in drawn.values())
    # as many steps of the trained model are twice as many calls
    for steps, ahead in {1: 10.0, 4: 2.0}.items():
        assert psnr(drawn[steps], wanted) > psnr(guided.draw(trained, 0, 10, steps), wanted) + ahead
    assert psnr(drawn[8], wanted) > 30


def test_the_lora_is_small_and_leaves_a_plain_transformer() -> None:
    assert sum(file.stat().st_size for file in FEW_STEPS.iterdir()) < 3e6
    found, trained = load_few_steps().state_dict(), load_transformer().state_dict()
    assert found.keys() == trained.keys()
    assert len(blocks_of(load_few_steps())) == 12
    assert not torch.equal(found["proj_out.weight"], trained["proj_out.weight"])
    assert all(value.dtype == torch.float32 for value in found.values())


def test_a_batch_lies_on_the_lines_of_its_pairs() -> None:
    made = torch.Generator().manual_seed(0)
    noise, tokens = torch.randn(2, 5, 64, 4, generator=made)
    pairs = distill.Pairs(noise, tokens, torch.arange(5))
    batch = distill.draw_batch(pairs, 16, seed=0, step=3)
    rows = batch.labels
    far = batch.times[:, None, None]
    # from its point a step of the whole time ends at the tokens, one back at the noise
    torch.testing.assert_close(batch.noisy - far * batch.velocity, tokens[rows], atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.noisy + (1 - far) * batch.velocity, noise[rows], atol=1e-5, rtol=0)
    assert (batch.times == 1).sum() == 4 and batch.times.min() >= 0
    again, other = (distill.draw_batch(pairs, 16, seed=0, step=step) for step in (3, 4))
    assert torch.equal(again.noisy, batch.noisy) and not torch.equal(other.noisy, batch.noisy)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pairs of two steps, drawn uncached; how many teachers were asked for."""
    asked: list[int] = []

    def teacher() -> object:
        asked.append(1)
        pipeline = load_pipeline()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    monkeypatch.setattr(distill, "TEACHER_STEPS", 2)
    monkeypatch.setattr(distill, "teacher", teacher)
    return asked


def test_pairs_are_what_the_teacher_draws_from_their_noise_and_kept(short: list[int], tmp_path: Path) -> None:
    pairs = distill.kept_pairs(tmp_path / "pairs.safetensors", 8, 4, seed=1)
    assert pairs.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    pipeline = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1_000_003 + 4)
    (tokens,) = pipeline(range(4, 8), 2, 2.0, generator, output_type="latent", return_dict=False)
    torch.testing.assert_close(pairs.tokens[4:], tokens, atol=1e-5, rtol=0)
    noise = torch.randn(4, 64, 4, generator=torch.Generator().manual_seed(1_000_003 + 4))
    assert torch.equal(pairs.noise[4:], noise)
    again = distill.kept_pairs(tmp_path / "pairs.safetensors", 8, 4, seed=1)
    assert torch.equal(again.tokens, pairs.tokens) and len(short) == 1
    distill.kept_pairs(tmp_path / "pairs.safetensors", 4, 4, seed=1)
    assert len(short) == 2


def test_distilling_learns_the_lines_and_writes_what_is_loaded(
    short: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ["--keep", str(tmp_path / "pairs.safetensors"), "--out", str(tmp_path / "lora")]
    numbers = ["--pairs", "8", "--steps", "12", "--batch-size", "8"]
    kept: list[list[float]] = []
    train = distill.distil
    monkeypatch.setattr(distill, "distil", lambda *args: kept.append(train(*args)) or kept[-1])
    monkeypatch.setattr(sys, "argv", ["distill", *paths, *numbers])
    distill.main()
    (losses,) = kept
    assert len(losses) == 12 and sum(losses[-3:]) < 0.9 * sum(losses[:3])

    def error(transformer: torch.nn.Module) -> float:
        pairs = distill.kept_pairs(tmp_path / "pairs.safetensors", 8, 8, seed=0)
        batch = distill.draw_batch(pairs, 64, seed=5, step=0)
        with torch.no_grad():
            return float(distill.velocity_error(transformer, batch))

    assert error(load_few_steps(tmp_path / "lora")) < 0.9 * error(load_transformer())


def test_an_unknown_output_type() -> None:
    with pytest.raises(ValueError, match=r"output_type='np': expected \"pil\", \"pt\" or \"latent\""):
        load_pipeline()([0], 2, output_type="np")
