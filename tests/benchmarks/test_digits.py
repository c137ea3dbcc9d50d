"""The trained digits model: it loads offline, it draws digits, and training can be resumed."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

pytest.importorskip("sklearn")

from benchmarks.digits import data, train
from benchmarks.digits.judge import load_judge
from benchmarks.digits.model import NULL_CLASS, WEIGHTS, condition, load_transformer, pack, position_ids, unpack
from benchmarks.digits.sample import DigitsPipeline, load_pipeline, sample


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer2DModel:
    return load_transformer()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[FluxTransformer2DModel]:
    """Training builds this transformer of 1 + 1 blocks instead of the real one."""
    new = train.new_transformer

    def small() -> FluxTransformer2DModel:
        config = {**new().config, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
        return FluxTransformer2DModel.from_config({**config, "axes_dims_rope": (4, 6, 6)})

    monkeypatch.setattr(train, "new_transformer", small)
    yield small()


def run_training(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    paths = ("--checkpoint", str(folder / "last.pt"), "--out", str(folder / "weights"))
    monkeypatch.setattr(sys, "argv", ["train", "--batch-size", "4", "--device", "cpu", *paths, *arguments])
    train.main()


def test_the_two_parts_of_the_digits_do_not_meet() -> None:
    ours, judges = data._split()
    assert not set(ours) & set(judges)
    assert len(ours) + len(judges) == 1797
    images, labels = data.transformer_digits()
    assert images.shape == (899, 16, 16) and images.min() >= 0 and images.max() <= 1
    assert labels.bincount(minlength=10).min() > 70


def test_packing_is_undone_by_unpacking() -> None:
    images = torch.rand(3, 16, 16)
    torch.testing.assert_close(unpack(pack(images)), images)


def test_a_token_is_the_patch_that_its_position_id_names() -> None:
    image = torch.zeros(1, 16, 16)
    image[0, 6:8, 10:12] = 1.0
    row_column = position_ids()[1][:, 1:]
    lit = pack(image)[0].amin(dim=-1) > 0
    assert row_column[lit].tolist() == [[3.0, 5.0]]


def test_the_conditioning_is_one_hot_with_a_class_of_its_own_for_none() -> None:
    text, pooled = condition(torch.tensor([3, NULL_CLASS]))
    assert text.shape == (2, 1, 11)
    assert pooled.argmax(dim=1).tolist() == [3, 10] and pooled.sum() == 2


def test_the_judge_reads_real_digits_it_was_not_trained_on() -> None:
    assert load_judge().accuracy(*data.transformer_digits()) >= 0.98


def test_the_weights_are_small_and_load_without_a_network(offline: None) -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 12e6
    transformer = FluxTransformer2DModel.from_pretrained(WEIGHTS)
    assert (transformer.config.num_layers, transformer.config.num_single_layers) == (4, 8)
    assert isinstance(load_pipeline(), DigitsPipeline)


def test_ten_steps_draw_readable_digits_and_the_same_ones_again(transformer: FluxTransformer2DModel) -> None:
    labels = list(range(10))
    images = sample(transformer, labels, steps=10, seed=1, progress=False)
    assert images.shape == (10, 16, 16) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert load_judge().accuracy(images, torch.tensor(labels)) >= 0.8
    assert torch.equal(images, sample(transformer, labels, steps=10, seed=1, progress=False))
    assert not torch.equal(images, sample(transformer, labels, steps=10, seed=2, progress=False))


def test_one_batch_for_both_branches_draws_the_same_picture(transformer: FluxTransformer2DModel) -> None:
    separate = sample(transformer, [4, 7], steps=3, progress=False)
    together = sample(transformer, [4, 7], steps=3, batched_cfg=True, progress=False)
    torch.testing.assert_close(separate, together, atol=1e-4, rtol=0)


def test_the_pipeline_calls_the_branches_as_diffusers_does(transformer: FluxTransformer2DModel) -> None:
    calls: list[dict[str, torch.Tensor]] = []
    handle = transformer.register_forward_pre_hook(lambda _, __, inputs: calls.append(inputs), with_kwargs=True)
    try:
        sample(transformer, [5], steps=3, progress=False)
    finally:
        handle.remove()
    conditional, unconditional = calls[::2], calls[1::2]
    assert [round(float(call["timestep"]), 3) for call in conditional] == [1.0, 0.667, 0.333]
    assert len({id(call["hidden_states"]) for call in conditional}) == 3
    for one, other in zip(conditional, unconditional, strict=True):
        assert one["hidden_states"] is other["hidden_states"]
        assert one["encoder_hidden_states"] is conditional[0]["encoder_hidden_states"]
        assert other["pooled_projections"] is unconditional[0]["pooled_projections"]


def test_without_guidance_only_the_conditional_branch_is_called(transformer: FluxTransformer2DModel) -> None:
    calls: list[object] = []
    handle = transformer.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    try:
        sample(transformer, [5], steps=2, guidance=1.0, progress=False)
    finally:
        handle.remove()
    assert len(calls) == 2


def test_pil_pictures() -> None:
    pipeline = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline([0, 1], num_inference_steps=1).images
    assert [picture.size for picture in pictures] == [(16, 16)] * 2
    with pytest.raises(ValueError, match="output_type='np'"):
        pipeline([0], num_inference_steps=1, output_type="np")


def test_a_resumed_training_equals_an_uninterrupted_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: FluxTransformer2DModel
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_STEPS", 3)
    run_training(monkeypatch, tmp_path / "whole", "--steps", "5")

    def interrupt(run: train.Run, batch: train.Batch) -> float:
        if run.step == 4:
            raise KeyboardInterrupt
        return step(run, batch)

    step = train.train_step
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_training(monkeypatch, tmp_path / "parts", "--steps", "5")
    run_training(monkeypatch, tmp_path / "parts", "--steps", "5", "--resume")

    whole, parts = (
        FluxTransformer2DModel.from_pretrained(tmp_path / name / "weights").state_dict() for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_checkpoint_of_another_length_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: FluxTransformer2DModel
) -> None:
    run_training(monkeypatch, tmp_path, "--steps", "2")
    with pytest.raises(ValueError, match=r"--steps=3: .* is a run of 2 steps"):
        run_training(monkeypatch, tmp_path, "--steps", "3", "--resume")


def test_training_can_end_early_and_go_on_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: FluxTransformer2DModel
) -> None:
    run_training(monkeypatch, tmp_path, "--steps", "4", "--stop-after", "2")
    early = FluxTransformer2DModel.from_pretrained(tmp_path / "weights").state_dict()
    run_training(monkeypatch, tmp_path, "--steps", "4", "--resume")
    late = FluxTransformer2DModel.from_pretrained(tmp_path / "weights").state_dict()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 4
    assert any(not torch.equal(early[name], late[name]) for name in late)
