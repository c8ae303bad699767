import cProfile
import re
from dataclasses import replace
from functools import partial

import pytest
import torch

from kit.budget import format_duration
from kit.methods import get_method, method_of
from kit.tools.profile import ASSUMED_SHARE, HIDDEN_RETAIN, PEAK_TFLOPS, PHASES, kernel_tflops, profile

FINETUNE = get_method("finetune", ["epochs=2"])


def profiled(model, loaders, method=FINETUNE, **options):
    return profile(method, model, loaders, **{"n_checkpoints": 100, "limit_s": 1e6, "progress": False, **options})


def test_every_phase_is_timed_and_the_whole_projected(model, loaders, tmp_path):
    result = profiled(model, loaders, load_s=3.0, out=tmp_path / "not/there/yet")
    assert set(result.phases) == set(PHASES)
    assert all(len(seconds) == 3 and min(seconds) >= 0 for seconds in result.phases.values())
    assert result.project() == pytest.approx(3.0 + 100 * sorted(result.whole)[1])
    assert (result.fits, result.steps, result.epochs) == (True, 14, 2.0)
    assert "fits the limit" in result.lines()[-1]
    assert result.free_bytes > 0
    assert 1e8 < result.memory_bytes < 1e11


def test_what_does_not_fit_is_told_with_what_would(model, loaders):
    phases = {phase: [1.0 if phase == "unlearn" else 0.0] * 3 for phase in PHASES}
    result = replace(profiled(model, loaders), phases=phases, load_s=0.0, limit_s=50.0)
    assert not result.fits
    assert "50 of 100 checkpoints would, all of them with epochs=1" in result.lines()[-1]
    assert "50% of the steps" in replace(result, epochs=None).lines()[-1]
    assert "a close call" in replace(result, limit_s=101.0).lines()[-1]
    assert "a close call" not in replace(result, limit_s=120.0).lines()[-1]
    full = replace(result, free_bytes=10)
    assert not full.fits
    assert "does not fit the disk" in full.lines()[-1]


def test_the_hidden_data_has_a_line_and_the_verdict_says_of_which_images_it_is(model, loaders):
    result = replace(profiled(model, loaders), n_retain=HIDDEN_RETAIN // 20)
    here, hidden, verdict = result.lines()[-3:]
    assert "26,000 retain images instead of 1,300" in hidden and "on these images" in verdict
    said = [re.search(r"T4 (.*?),", line)[1] for line in (here, hidden)]
    assert said == [format_duration(result.elsewhere(growth)["T4"]) for growth in (1, 20)]
    extra = result.elsewhere(20)["T4"] - result.elsewhere()["T4"]
    on_a_t4 = result.kernel_tflops / (ASSUMED_SHARE * PEAK_TFLOPS["T4"])
    assert extra == pytest.approx(19 * on_a_t4 * result.rounds * result.typical["unlearn"])
    as_large = replace(result, n_retain=HIDDEN_RETAIN).lines()
    assert not any("hidden data" in line for line in as_large) and "on these images" not in as_large[-1]


def test_the_functions_that_take_the_time_are_named(model, loaders, own_clock, monkeypatch):
    def sleep():
        own_clock.now += 3.0

    def unlearning(net, retain, forget, validation):
        sleep()
        own_clock.now += 1.0
        with torch.no_grad():
            net.fc.bias += torch.randn(10)

    with monkeypatch.context() as patch:
        patch.setattr(cProfile, "Profile", partial(cProfile.Profile, own_clock))
        result = profiled(model, loaders, method_of(unlearning))
    assert list(result.stages.items())[:2] == [("sleep", 0.75), ("unlearning", 0.25)]
    assert result.steps is None
    assert any("backward" in name for name in profiled(model, loaders, n_measured=1).stages)


def test_the_first_checkpoint_of_a_function_pays_for_warming_up(model, loaders, own_clock):
    calls = []

    def unlearning(net, retain, forget, validation):
        calls.append(0)
        own_clock.passes(0.5 if len(calls) == 1 else 0.05)
        with torch.no_grad():
            net.fc.bias += torch.randn(10)

    result = profiled(model, loaders, method_of(unlearning), n_measured=2)
    assert (len(calls), result.whole) == (3, pytest.approx([0.05, 0.05]))


def test_other_devices_differ_by_their_rates_alone(model, loaders):
    result = profiled(model, loaders)
    assert set(result.elsewhere()) == set(PEAK_TFLOPS)
    unlearn_s = sorted(result.phases["unlearn"])[1]
    other_s = sorted(result.whole)[1] - unlearn_s
    for name, seconds in result.elsewhere().items():
        factor = result.kernel_tflops / (0.3 * PEAK_TFLOPS[name])
        assert seconds == pytest.approx(100 * (other_s + unlearn_s * factor))
    assert 1e-3 < kernel_tflops(torch.device("cpu")) < 100


def test_several_processes_share_all_but_packing_and_the_check(model, loaders):
    def unlearning(net, retain, forget, validation):
        with torch.no_grad():
            net.fc.bias += torch.randn(10)

    result = profiled(model, loaders, method_of(unlearning), n_parallel=4)
    close_s = result.phases["pack"][0] + result.phases["verify"][0]
    assert result.project() == pytest.approx(25 * (sorted(result.whole)[1] - close_s) + 100 * close_s)
    assert "in 4 processes" in "\n".join(result.lines())
    assert result.uncertainty_s >= 0.15 * result.project()
