"""The training loop: read a batch, step, log, evaluate, save."""

import logging
from collections.abc import Callable
from time import perf_counter, time
from typing import Any

import numpy as np

from mindmoe.config.plugins import FLIGHT_RECORDER, Beside, find
from mindmoe.data.loader import Batch, TokenBatches
from mindmoe.host.errors import CheckpointError
from mindmoe.host.position import during
from mindmoe.moe.statistics import RoutingStatistics, Saturation, routing_statistics
from mindmoe.optim.schedule import learning_rate
from mindmoe.parallel.collectives import host_sum
from mindmoe.parallel.sequence import token_positions
from mindmoe.train.evaluate import Evaluator
from mindmoe.train.folder import RunFolder
from mindmoe.train.guard import EXIT_ORPHANED, EXIT_OVERTAKEN, StopRequest
from mindmoe.train.peak import Peak
from mindmoe.train.persist import Saver
from mindmoe.train.setup import Trainer, compiles
from mindmoe.train.step import StepResult

log = logging.getLogger(__name__)
Sink = Callable[[dict[str, Any]], None]
EXIT_NOT_FINITE = 3
_REASONS = {EXIT_ORPHANED: "a launcher has gone", EXIT_OVERTAKEN: "another start takes this run over"}


class Loop:
    """Runs a trainer from a step to the end of its run.

    Args:
        trainer: the parts of the run on this rank.
        batches: training batches.
        evaluator: held-out evaluation.
        saver: writes checkpoints.
        sink: takes records; ignores them on ranks other than 0.
    """

    def __init__(self, trainer: Trainer, batches: TokenBatches, evaluator: Evaluator, saver: Saver, sink: Sink):
        self.trainer, self.batches, self.evaluator, self.saver, self.sink = trainer, batches, evaluator, saver, sink
        self.config = trainer.config.train
        self.saved_step = -1
        self.eval_loss: tuple[int, float] | None = None
        self.beside: Beside | None = None
        self.tokens_per_step = self.config.global_batch_size * self.config.seq_length
        self.peak = Peak(trainer.config, trainer.kernels, trainer.groups["world"])
        self.saturation = Saturation()

    def event(self, step: int, event: str, message: str) -> None:
        """Records something that happened."""
        self.sink({"kind": "event", "step": step, "time": time(), "event": event, "message": message})

    def alarm(self, step: int, event: str, message: str) -> None:
        """Records something to act on; where several ranks run no console shows records, so that the log tells it."""
        self.event(step, event, message)
        if self.trainer.place.world > 1:
            log.error(message)

    def run(self, start: int, stop: StopRequest) -> int:
        """Trains from step `start` on; returns the exit code."""
        # The checkpoint that was resumed from need not be saved again; -1 says that no step is saved.
        self.saved_step = start if start else -1
        config = self.trainer.config
        if config.qea is not None:
            self.beside = config.qea.start(config, self.trainer.step, self.trainer.groups, start)
        self.event(start, "machine", f"{self.peak.source}; ops: {self.trainer.kernels.name}")
        self.event(start, "compile", self.how())
        for step in range(start, self.config.steps):
            # A save that failed stops all ranks at the same step, as a signal does.
            with during("step", number=step + 1):
                result = self.step(step, stop.asked or self.must_stop)
                with during("measuring the peak"):
                    message = self.peak.after(step + 1 - start)
                if message is not None:
                    self.event(step + 1, "machine", message)
            done = step + 1
            self.tell_saves()
            self.tell_copies()
            # Before any evaluation or save of this step: the weights are still those before it.
            if not result.finite:
                return self.not_finite(step, result)
            last = done == self.config.steps
            # Evaluated before it is saved, so that the checkpoint records its held-out loss (`checkpoint.keep_best`).
            if last or (self.config.eval_every and done % self.config.eval_every == 0):
                self.evaluate(done)
            every = self.trainer.config.checkpoint.every
            # `result.stop` is the same on every rank, so that all of them save and leave after the same step.
            if last or result.stop or (every and done % every == 0):
                self.save(done)
            if last or result.stop:
                self.finish_saves()
            # The code is 0 where a failed save alone was the reason and the save of this step worked: the run goes on.
            if result.stop and not last and (code := self.agreed(stop.exit_code)):
                why = _REASONS.get(code, "asked to stop")
                self.event(done, "signal", f"{why}: saved step {done}; the same command resumes there")
                return code
        self.event(self.config.steps, "finish", f"finished {self.config.steps} steps")
        return 0

    def how(self) -> str:
        """How steps are run, in words."""
        if compiles(self.trainer.config, self.trainer.mesh.world):
            return "compiling the step, then training"
        if self.config.mode == "graph":
            return "training op by op: train.mode=graph compiles the step of one process alone, without recomputation"
        return "training op by op"

    def close(self) -> None:
        """Ends what runs beside training."""
        if self.beside is not None:
            self.beside.close()

    def step(self, step: int, asked: bool) -> StepResult:
        """One step and its records."""
        started = perf_counter()
        with during("reading data"):
            micro_batches = self.micro_batches(step)
        # A collective, and so a wait for the slowest rank to read: it counts as time for data.
        num_valid = self.trainer.step.count_valid(micro_batches)
        data_seconds = perf_counter() - started
        lr = learning_rate(self.trainer.config.optim, step, self.config.steps)
        if self.beside is not None:
            self.beside.before(step)
        result = self.trainer.step.run(step, micro_batches, num_valid, lr, asked)
        self.record_routing(step + 1)
        seconds = perf_counter() - started
        statistics = None
        if result.routing is not None and result.finite:
            statistics = routing_statistics(result.routing, self.tokens_per_step)
            if self.beside is not None:
                self.beside.after(step, result.loss, float(statistics.cv.mean()), seconds)
        every = self.trainer.config.observe.log_every
        if (step + 1) % every == 0 or step + 1 == self.config.steps:
            self.sink(self.train_record(step + 1, result, statistics, lr, seconds, data_seconds))
            if statistics is not None and (warning := self.saturation.after(statistics)):
                self.alarm(step + 1, "router_collapse", warning)
            if statistics is not None and ((step + 1) % (10 * every) == 0 or step + 1 == self.config.steps):
                self.sink(routing_record(step + 1, statistics))
        return result

    def record_routing(self, done: int) -> None:
        """Keeps this step's decisions where they are asked for; ranks of one data replica know them all."""
        trainer, every = self.trainer, self.trainer.config.observe.routing_every
        if not trainer.step.chosen or done % every or trainer.at.dp != 0:
            return
        moe, config = trainer.config.moe, trainer.config
        assert moe is not None
        find(FLIGHT_RECORDER)(
            RunFolder.of(config).path,
            done,
            trainer.place.rank,
            [(part.layers, ids) for part, ids in zip(trainer.step.parts, trainer.step.chosen, strict=True)],
            token_positions(self.config.seq_length, trainer.mesh, trainer.place.rank),
            (config.model.num_hidden_layers, self.config.seq_length, moe.num_experts),
        )

    def micro_batches(self, step: int) -> list[Batch]:
        """This rank's rows: micro-batch m of all data ranks together is the same set of rows under any dp."""
        micro, dp, rank = self.config.micro_batch_size, self.trainer.mesh.dp, self.trainer.at.dp
        # Data rank r takes rows r * micro and every dp * micro behind that: micro-batch m of all is one run of rows.
        starts = range(rank * micro, self.config.global_batch_size, dp * micro)
        return [self.batches.batch(step, start, start + micro) for start in starts]

    def train_record(
        self,
        step: int,
        result: StepResult,
        statistics: RoutingStatistics | None,
        lr: float,
        seconds: float,
        data_seconds: float,
    ) -> dict[str, Any]:
        """The record of a step."""
        # Tokens of all ranks, masked ones included, because they cost the same compute.
        rate = self.tokens_per_step / seconds
        mfu, hfu = self.peak.shares(rate)
        record = {
            "kind": "train",
            "step": step,
            "time": time(),
            "loss": result.loss,
            "aux_loss": result.aux_loss,
            "z_loss": result.z_loss,
            "lr": lr,
            "grad_norm": result.grad_norm,
            "tokens": self.tokens_per_step,
            "tokens_per_s": rate,
            "mfu": mfu,
            "hfu": hfu,
            "step_seconds": seconds,
            "data_seconds": data_seconds,
            "compute_seconds": result.compute_seconds,
            "update_seconds": result.update_seconds,
        }
        # Only where sequences are balanced: it is 0.0 where the objective does not report it.
        if result.seq_aux_loss:
            record["seq_aux_loss"] = result.seq_aux_loss
        if statistics is not None:
            record |= {
                "load_cv": float(statistics.cv.mean()),
                "max_vio": float(statistics.max_vio.max()),
                "router_entropy": float(statistics.entropy.mean()),
                "dropped_fraction": float(statistics.dropped.mean()),
                "mean_k": float(statistics.mean_k.mean()),
            }
        return record

    def evaluate(self, step: int) -> None:
        """Measures the held-out loss."""
        with during("evaluation"):
            record = self.evaluator.run(step)
        self.eval_loss = (step, record["loss"])
        self.sink(record)

    def save(self, step: int) -> None:
        """Saves a step, in the background unless the config says otherwise."""
        if self.saved_step == step:
            return
        measured = self.eval_loss is not None and self.eval_loss[0] == step
        with during("saving", number=step):
            self.saver.save(step, self.eval_loss[1] if self.eval_loss and measured else None)
        self.saved_step = step
        self.tell_saves()

    @property
    def must_stop(self) -> bool:
        """Whether the last save failed and the config wants to stop for that."""
        return self.saver.failed is not None and self.saver.stops

    def tell_saves(self, wait: bool = False) -> None:
        """Records how saves ended since the last call; a failure is never silent."""
        for outcome in self.saver.outcomes(wait):
            step = outcome.step
            if outcome.error is None:
                size = f"{outcome.nbytes / 2**20:.1f} MiB in {outcome.seconds:.1f} s"
                self.event(step, "checkpoint", f"saved step {step}: {size}, training waited {outcome.stall:.2f} s")
            else:
                # So that a later save of this same step is not left out.
                self.saved_step = -1
                self.alarm(step, "checkpoint_failed", f"step {step} was NOT saved: {outcome.error}")
            self.sink(
                {
                    "kind": "checkpoint",
                    "step": step,
                    "time": time(),
                    "saved": outcome.error is None,
                    "seconds": outcome.seconds,
                    "stall_seconds": outcome.stall,
                    "copy_seconds": outcome.copy,
                    "bytes": outcome.nbytes,
                }
            )

    def tell_copies(self, wait: bool = False) -> None:
        """Records how copies to the second place ended; training goes on without one that failed."""
        for copy in self.saver.copies(wait):
            if copy.error is None:
                where = f"copied step {copy.step} to {copy.place} and verified it in {copy.seconds:.1f} s"
                self.event(copy.step, "checkpoint_copied", where)
            else:
                self.alarm(copy.step, "checkpoint_copy_failed", f"step {copy.step} was NOT copied: {copy.error}")

    def finish_saves(self) -> None:
        """Waits until no save is under way.

        Raises:
            CheckpointError: the last one failed, on every rank.
        """
        self.tell_saves(wait=True)
        self.tell_copies(wait=True)
        # A rank that raised alone would leave the others waiting in their next collective.
        if self.any_rank(self.saver.failed is not None):
            raise self.saver.failed or CheckpointError("another rank could not save", "see its message")

    def agreed(self, code: int) -> int:
        """The greatest exit code of any rank: a signal goes before the reasons of guard.py."""
        # A maximum made of a sum: every rank raises the flag of its code, and the last raised one is the greatest.
        return int(np.flatnonzero(host_sum(np.eye(256)[code], self.trainer.groups["world"]))[-1])

    def any_rank(self, flag: bool) -> bool:
        """Whether a flag is set on any rank."""
        return bool(host_sum(np.array([float(flag)]), self.trainer.groups["world"])[0])

    def not_finite(self, step: int, result: StepResult) -> int:
        """Stops with the last good state on disk."""
        # `step` steps are complete; it does nothing if that checkpoint is there already.
        self.save(step)
        self.finish_saves()
        message = (
            f"loss {result.loss} or gradient norm {result.grad_norm} of step {step + 1} is not finite; the "
            f"weights before that step are saved as step {step}: lower optim.lr, look at the data of that "
            f"step, or continue from an earlier checkpoint"
        )
        self.alarm(step, "nan", message)
        return EXIT_NOT_FINITE


def routing_record(step: int, statistics: RoutingStatistics) -> dict[str, Any]:
    """The routing of every layer, rounded to what a picture needs."""
    return {
        "kind": "routing",
        "step": step,
        "load": np.round(statistics.load, 6).tolist(),
        "cv": np.round(statistics.cv, 6).tolist(),
        "max_vio": np.round(statistics.max_vio, 6).tolist(),
        "entropy": np.round(statistics.entropy, 6).tolist(),
        "dropped": np.round(statistics.dropped, 6).tolist(),
    }
