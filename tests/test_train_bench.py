"""The bench of training: both loops do the work that their figures are of."""

from pathlib import Path

import pytest
import torch

from scripts.train_bench import alternate, bare_loop, main, open_job, training


def test_both_loops_take_as_many_steps_of_the_optimizer(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    job = open_job(tmp_path, "small", 64, 4, 3, ())
    for work in (training(job), bare_loop(job, 3)):
        before = _steps(job.optimizer)
        work()
        assert _steps(job.optimizer) == before + 3


def test_a_first_turn_does_not_count() -> None:
    done: list[str] = []
    seconds = alternate((lambda: done.append("a"), lambda: done.append("b")), 2)
    assert done == ["a", "b"] * 3 and len(seconds) == 2


@pytest.mark.slow
def test_the_table_has_a_row_for_each_net(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--steps", "1", "--rounds", "1"]) == 0
    told = capsys.readouterr().out
    assert "| small | 128 | 16 |" in told and "| mobilenet_v2 | 256 | 8 |" in told


def _steps(optimizer: torch.optim.Optimizer) -> int:
    return max((int(state["step"]) for state in optimizer.state.values()), default=0)
