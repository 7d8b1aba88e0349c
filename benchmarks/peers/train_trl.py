"""Training steps of TRL's SFTTrainer with packing, as a peer of benchmarks/train.py.

    python benchmarks/peers/train_trl.py sft

Packing by best-fit decreasing without padding, TRL's default; the loss on responses only. Gradient
checkpointing, which TRL has on by default, is off, as it is in the other engines.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from train_hf import arguments, trunk
from train_work import SHAPES, WORKS, Turns, own_stdout, parse, samples


def main() -> None:
    options = parse(__doc__.splitlines()[0])
    out = own_stdout()
    work = WORKS[options.work]

    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    turns = Turns(work, out)
    tokens: list[int] = []
    model = trunk(work)

    class TakeTurns(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = not turns.step_done(sum(tokens), float(losses[-1]))
            tokens.clear()

    losses: list[Any] = []

    class Watched(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            tokens.append(inputs["input_ids"].numel())
            loss = super().compute_loss(model, inputs, *args, **options)
            losses[:] = [loss.detach()]
            return loss

    dataset = Dataset.from_list(
        [
            {"input_ids": ids, "completion_mask": [int(n >= prompt) for n in range(len(ids))]}
            for ids, prompt in samples(work)
        ]
    )
    # The samples are token ids already; a trainer must have a tokenizer all the same.
    words = {str(n): n for n in range(SHAPES[work.shape]["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="0")),
        pad_token="0",
        eos_token="1",
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Watched(
            model=model,
            args=SFTConfig(
                folder,
                packing=True,
                max_length=work.length,
                completion_only_loss=True,
                gradient_checkpointing=False,
                bf16=False,
                **arguments(work),
            ),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[TakeTurns()],
        )
        trainer.train()


if __name__ == "__main__":
    sys.exit(main())
