"""`mindmoe import` and `mindmoe export`: between runs and Hugging Face folders, without starting MindSpore."""

from pathlib import Path

from mindmoe.checkpoint import store
from mindmoe.checkpoint.commands import size_text, step_folder
from mindmoe.checkpoint.reader import total_digest
from mindmoe.config.load import load_config
from mindmoe.config.run import RunConfig, resolve
from mindmoe.host.env import quiet_mindspore, usable_cores
from mindmoe.host.errors import UserError
from mindmoe.interop.export import Form, export, plan, predicted_size, weight_shapes
from mindmoe.interop.hf_config import check_representable
from mindmoe.interop.hf_tokenizer import HfTokenizer, hf_tokenizer, no_tokenizer
from mindmoe.interop.importing import check_same_model, import_weights
from mindmoe.interop.source import CheckpointSource, FolderSource
from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.train.folder import RunFolder
from mindmoe.train.preflight import open_held_out


def import_main(folder: Path, run: RunConfig) -> int:
    """Makes a Hugging Face folder the first checkpoint of a run.

    Raises:
        UserError: it is another model, is damaged, or the run exists.
    """
    run = resolve(run, 1)
    told = check_same_model(folder, run)
    home = RunFolder.of(run)
    home.check_continues(run)
    with FolderSource(folder) as source:
        home.create(run)
        path = import_weights(source, home.checkpoints, run)
    with store.open_step(path) as checkpoint:
        tensors = checkpoint.tensors
        print(f"{path}: {len(tensors)} tensors, {size_text(checkpoint.manifest.size)}, content {total_digest(tensors)}")
    for line in told:
        print(line)
    print("train or launch the same config to continue from these weights")
    return 0


def export_main(
    path: Path, out: Path | None, form: Form, step: int | None, drop_selection_bias: bool, compare: int
) -> int:
    """Writes a step of a run as a Hugging Face folder and says what it cost.

    Raises:
        UserError: there is no such step, GptOss cannot express the model, or `out` exists.
    """
    run = RunFolder(path).load_config()
    out = out or path / f"hf-{form}"
    with store.open_step(step_folder(path, step)) as checkpoint:
        source, tokenizer = CheckpointSource(checkpoint), _tokenizer(run)
        error = export(
            source, out, run.model, run.moe, form, tokenizer=tokenizer, drop_selection_bias=drop_selection_bias
        )
        done = checkpoint.manifest.step
        if compare:
            _compare(run, source, out, compare)
    print(f"{out}: step {done} as {form}, {size_text(sum(f.stat().st_size for f in out.rglob('*') if f.is_file()))}")
    print(tokenizer.note or "the tokenizer gives AutoTokenizer the ids of the run's own")
    if run.model.swiglu_alpha != ModelConfig.model_fields["swiglu_alpha"].default:
        print(
            f"swiglu_alpha={run.model.swiglu_alpha} needs a transformers that reads this key, as 5.23 does: an older "
            "one computes with 1.702"
        )
    if error.count:
        print(
            f"MXFP4 of {error.count:,} expert weights: relative RMS error {error.relative_rms:.4f}, largest "
            f"{error.largest:.3g}, largest within a block {error.largest_in_block:.3f} of its peak, "
            f"{error.saturated / error.count:.3%} saturated"
        )
    return 0


def _tokenizer(run: RunConfig) -> HfTokenizer:
    """The tokenizer that a run's data was made with; a run without one is exported all the same, and told so."""
    path = run.data.tokenizer or run.data.sources[0].path
    try:
        return hf_tokenizer(path, run.model.vocab_size, run.model.max_position_embeddings)
    except UserError as error:
        return no_tokenizer(str(error))


def _compare(run: RunConfig, source: CheckpointSource, out: Path, tokens_wanted: int) -> None:
    """Prints how far the logits of the exported folder are from the run's, on whole held-out rows of one batch."""
    length = run.train.seq_length
    rows = min(-(-tokens_wanted // length), run.train.global_batch_size)
    tokens = open_held_out(run).batch(0, 0, rows).input_ids[:, :tokens_wanted]
    quiet_mindspore(usable_cores())
    from mindmoe.interop.compare import exported_difference

    moe = check_representable(run.model, run.moe)
    found = exported_difference(source, run.model, moe, out, tokens)
    print(
        f"logits on {tokens.size} held-out tokens: largest difference {found.largest:.3g}, relative RMS "
        f"{found.relative_rms:.3g}, divergence {found.divergence:.3g} nats per token, same choice at "
        f"{found.same_choice:.1%} of the places"
    )


def size_main(config: str) -> int:
    """Prints how large an export of a config would be, for both forms."""
    run = load_config(config)
    check_representable(run.model, run.moe)
    for form in ("bf16", "mxfp4"):
        parts = plan(weight_shapes(run.model, run.moe), form)
        print(f"{run.name} as {form}: {predicted_size(parts) / 2**30:.2f} GiB in {len(parts)} files")
    return 0
