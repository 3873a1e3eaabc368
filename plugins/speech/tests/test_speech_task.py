"""The task ``speech-frames``: what it trains on, what it holds out, and that it is found and learned."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path

import pytest
import torch

from curvlab.config import build, load
from curvlab.errors import ConfigError, DataError
from curvlab.protocols.sampler import Draw
from curvlab.registry import Registry, discover
from curvlab.registry.loader import Candidate
from curvlab.tasks.supervised import SupervisedWorkload
from curvlab_speech import festvox
from curvlab_speech.folder import MANIFEST
from curvlab_speech.task import SpeechFrames
from curvlab_speech.windows import Windows
from plugins.speech.tests.samples import SIZES, corpus, manifest, needs_festvox

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def registry() -> Registry:
    plugin = Candidate("speech", "curvlab-speech", "0", lambda: importlib.import_module("curvlab_speech"))
    return discover(plugins=[plugin], strict=True)


def made(task: SpeechFrames, seed: int = 0, dtype: torch.dtype = torch.float64) -> SupervisedWorkload:
    torch.manual_seed(seed)
    return task.workload(task.model(), dtype=dtype, device=CPU)


def small(root: Path) -> SpeechFrames:
    return SpeechFrames(root=str(root), hidden=(16,), context=1, batch_size=32, held_out=0.2)


def test_the_network_sees_context_and_answers_with_thirds_of_phonemes(prepared: Path) -> None:
    with torch.device("meta"):
        model = SpeechFrames(root=str(prepared)).model()
    widths = [(m.in_features, m.out_features) for m in model if isinstance(m, torch.nn.Linear)]
    assert widths == [(9 * 4, 512), *[(512, 512)] * 4, (512, 9)]
    assert [type(m).__name__ for m in model].count("Sigmoid") == 5


def test_held_out_utterances_are_whole_and_none_is_trained_on(prepared: Path) -> None:
    work = made(small(prepared))
    assert (work.size, len(work.validation)) != (0, 0)
    assert work.size + len(work.validation) == sum(SIZES)
    training, validation = work.training, work.validation
    assert isinstance(training, Windows)
    assert isinstance(validation, Windows)

    def sizes(part: Windows) -> list[int]:
        return (part.last - part.first + 1)[part.first.unique()].tolist()

    assert len(sizes(validation)) == 2  # a fifth of ten
    assert sorted(sizes(training) + sizes(validation)) == sorted(SIZES)


def test_features_are_normalized_over_the_training_frames(prepared: Path) -> None:
    training = made(small(prepared)).training
    assert isinstance(training, Windows)
    torch.testing.assert_close(training.frames.mean(0), torch.zeros(4).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        training.frames.std(0, correction=0), torch.ones(4).double(), atol=1e-5, rtol=0
    )


def test_it_is_learned(prepared: Path) -> None:
    work = made(small(prepared))
    optimizer = torch.optim.Adam(work.model.parameters(), lr=3e-2)
    before = work.metrics()
    everything = torch.arange(work.size)
    for _ in range(150):
        optimizer.step(work.objective(Draw(everything, everything, everything)))
    after = work.metrics()
    assert after["val_loss"] < 0.7 * before["val_loss"]
    assert after["val_accuracy"] > 0.6
    assert set(after) == {"val_loss", "val_accuracy"}


def test_a_seed_gives_one_problem_and_one_start_and_precisions_see_the_same(prepared: Path) -> None:
    task = small(prepared)
    first, again = made(task), made(task)
    assert first.metrics() == again.metrics()
    assert made(task, seed=1).metrics() != first.metrics()
    assert made(task, dtype=torch.float32).metrics()["val_loss"] == pytest.approx(
        first.metrics()["val_loss"], rel=1e-4
    )


def test_loading_data_leaves_the_global_generator_alone(prepared: Path) -> None:
    task = small(prepared)
    model = task.model()
    before = torch.get_rng_state()
    task.workload(model, dtype=torch.float32, device=CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_recipes_are_values(prepared: Path) -> None:
    task = small(prepared)
    assert pickle.loads(pickle.dumps(task)) == task


def test_without_data_the_error_says_the_command(tmp_path: Path) -> None:
    for task in (SpeechFrames(), SpeechFrames(root=str(tmp_path))):
        with pytest.raises(DataError, match="curvlab tasks prepare speech-frames --minutes 10 --to"):
            task.model()


def test_one_utterance_cannot_be_held_out(tmp_path: Path) -> None:
    from curvlab_speech import folder

    folder.write(tmp_path, corpus().of(torch.tensor([0])), manifest())
    with pytest.raises(DataError, match="too few to hold some out"):
        made(small(tmp_path))


def test_a_damaged_manifest_is_found_before_training(prepared: Path) -> None:
    (prepared / MANIFEST).write_text("{}")
    with pytest.raises(DataError, match="version None, expected 1"):
        small(prepared).model()


METHOD = {
    "preconditioner": "identity",
    "damping": {"use": "constant", "value": 0.0},
    "step": {"use": "rate", "lr": 0.1},
}

BAD = [
    ({"held_out": 0.0}, "held_out = 0.0 must be > 0 and < 1"),
    ({"held_out": 1.0}, "held_out = 1.0 must be > 0 and < 1"),
    ({"context": -1}, "context = -1 must not be negative"),
    ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
    ({"hidden": (0,)}, "hidden.0 = 0 must be at least 1"),
]


@pytest.mark.parametrize(("setting", "says"), BAD)
def test_bad_settings_are_refused(setting: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SpeechFrames(**setting)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_a_configuration_names_it(registry: Registry, prepared: Path) -> None:
    task = {"use": "speech-frames", "root": str(prepared), "hidden": [8], "context": 2}
    data = {"run": {"steps": 1}, "task": task, "method": METHOD}
    plan = build(load(data=data), registry)
    assert plan.task == SpeechFrames(root=str(prepared), hidden=(8,), context=2)


def test_listings_call_it_synthetic(registry: Registry) -> None:
    assert registry.part("task", "speech-frames").source.startswith("synthetic speech")


@needs_festvox
def test_recorded_frames_are_learned() -> None:
    task = SpeechFrames(source="festvox", hidden=(64,))
    work = made(task, dtype=torch.float32)
    assert work.size + len(work.validation) == 20_534
    assert work.model[0].in_features == 9 * 17
    optimizer = torch.optim.Adam(work.model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        chosen = torch.randint(0, work.size, (1024,), generator=generator)
        optimizer.step(work.objective(Draw(chosen, chosen, chosen)))
    assert work.metrics()["val_accuracy"] > 0.3  # by chance 0.05
    assert festvox.find(None).is_file()
