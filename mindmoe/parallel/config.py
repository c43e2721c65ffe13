"""How a run is laid over its ranks: degrees of the axes, pipeline schedule, ZeRO stage, exchange, recomputation."""

from typing import Any, Literal

from pydantic import Field, model_validator

from mindmoe.config.schema import PositiveInt32, Section
from mindmoe.pipeline.schedule import ScheduleName

Dispatcher = Literal["auto", "all_gather", "all_to_all", "two_hop"]
Recompute = Literal["none", "selective", "full"]


class ParallelConfig(Section):
    """Degrees: data, tensor (with sequence), pipeline, expert and context; `dp: auto` takes the cards the others leave.

    `ep` folds over dp x cp (and over tp where experts are not split: `etp` is the tensor degree of an expert, by
    default tp). `cp_method`: `ring` passes keys and values round, `ulysses` trades heads for sequence.
    `zero`: what is sharded over replicas: 1 optimizer state, 2 gradients too, 3 weights too (gathered for each block).
    `recompute`: what a block computes again in its backward pass instead of keeping it: `selective` its FFN half,
    `full` everything; `recompute_layers` limits it to the first layers of each stage. Pipeline stages compute their
    forward pass again in any case; under ZeRO 3 `full` also frees gathered weights there.
    `schedule`, `chunks`: pipeline schedule, and pieces of the network on each stage. `split`: layers of each piece in
    the order of the forward pass, or `even`.
    `parallel: auto` alone leaves the layout to the planner: `planned` is true until launch, when it has chosen for
    `launch.hardware`.
    `dispatcher`: how tokens reach experts on other ranks; `auto` is `all_to_all`. `two_hop` sends a token
    once to each node of `node_size` ranks, `all_gather` every token to every rank.
    """

    dp: PositiveInt32 | Literal["auto"] = "auto"
    tp: PositiveInt32 = 1
    pp: PositiveInt32 = 1
    ep: PositiveInt32 = 1
    cp: PositiveInt32 = 1
    etp: PositiveInt32 | Literal["tp"] = "tp"
    cp_method: Literal["ring", "ulysses"] = "ring"
    zero: int = Field(0, ge=0, le=3)
    recompute: Recompute = "none"
    recompute_layers: PositiveInt32 | Literal["all"] = "all"
    schedule: ScheduleName = "1f1b"
    chunks: PositiveInt32 = 1
    split: Literal["even"] | list[PositiveInt32] = "even"
    dispatcher: Dispatcher = "auto"
    node_size: PositiveInt32 = 8
    planned: bool = False

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return {"planned": True} if value == "auto" else value  # the short form `parallel: auto`

    @model_validator(mode="after")
    def _check(self) -> "ParallelConfig":
        fields = type(self).model_fields
        # by value: a default that is written out is no choice of layout
        given = ", ".join(key for key, field in fields.items() if getattr(self, key) != field.default)
        if self.planned and given != "planned":
            raise ValueError(
                f"planned=true must stand alone, not with {given}: write `parallel: auto` alone, or the layout"
            )
        return self

    @property
    def expert_tp(self) -> int:
        """The tensor degree of an expert."""
        return self.tp if self.etp == "tp" else self.etp

    @property
    def chosen_dispatcher(self) -> Literal["all_gather", "all_to_all", "two_hop"]:
        """The dispatcher of a run: `auto` resolved."""
        return "all_to_all" if self.dispatcher == "auto" else self.dispatcher
