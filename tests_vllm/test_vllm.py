"""vLLM reads our folders: the same greedy tokens, and the MTP layer is worth as much there.

Each test loads the folder in vLLM, in this process, which takes some seconds. Equality is token
for token in float32; `untied` names every place where that fails for another reason than two
logits that are equal up to rounding.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.vllm_mtp import Greedy, Parting, Vllm, answer, answer_as_vllm_does, partings
from openmimo.interop.exporting import Model, export_model
from openmimo.model.checkpoint import load_model, write_model
from openmimo.model.mimo import MiMo

from .conftest import LENGTH, Export, Native, copy_folder

# The first test that asks for the run waits for its training, too.
pytestmark = pytest.mark.timeout(900)

POINTS = 0.02
"""How far apart the two engines' acceptance may be."""


def untied(native: Native, theirs: Greedy) -> list[Parting]:
    """Differences that no rounding explains."""
    found = partings(native.model, native.prompts, native.greedy, theirs)
    assert len(found) <= len(native.prompts) // 20, found  # ties are rare, too
    return [parting for parting in found if not parting.tied]


@pytest.fixture(scope="module")
def theirs(hf_folder: Path, native: Native) -> Greedy:
    with Vllm(hf_folder) as vllm:
        return vllm.answer(native.prompts, LENGTH, native.stop_ids)


def test_the_model_can_show_something(native: Native) -> None:
    assert len(native.prompts) >= 100
    assert sum(map(len, native.greedy.answers)) > 1500
    assert len({tuple(tokens) for tokens in native.greedy.answers}) > 30
    assert 0.5 < native.greedy.acceptance < 0.98


def test_same_tokens(native: Native, theirs: Greedy) -> None:
    assert untied(native, theirs) == []


def test_same_acceptance(native: Native, theirs: Greedy) -> None:
    alike = answer_as_vllm_does(native.model, native.tokenizer, native.prompts, native.greedy)
    assert alike.answers == native.greedy.answers
    assert theirs.drafts == pytest.approx(alike.drafts, rel=0.01)
    assert theirs.acceptance == pytest.approx(alike.acceptance, abs=POINTS)
    # All that the native engine does otherwise: it drafts the first token of an answer too.
    assert 0 <= native.greedy.drafts - alike.drafts <= len(native.prompts)


def test_a_fixed_length_past_the_end_of_the_answers(hf_folder: Path, native: Native) -> None:
    prompts = native.prompts[:24]
    ours = answer(native.model, native.tokenizer, prompts, [LENGTH] * len(prompts))
    with Vllm(hf_folder) as vllm:
        there = vllm.answer(prompts, LENGTH)
    assert {len(tokens) for tokens in there.answers} == {LENGTH}
    alike = answer_as_vllm_does(native.model, native.tokenizer, prompts, ours)
    found = partings(native.model, prompts, ours, there)
    assert [parting for parting in found if not parting.tied] == []
    assert there.acceptance == pytest.approx(alike.acceptance, abs=POINTS)


def test_without_drafts(hf_folder: Path, native: Native) -> None:
    with Vllm(hf_folder, drafts=0) as vllm:
        there = vllm.answer(native.prompts, LENGTH, native.stop_ids)
    assert there.drafts == 0
    assert untied(native, there) == []


def test_the_vllm_form_in_shards(export: Export, native: Native, theirs: Greedy) -> None:
    folder = export("vllm", max_shard_bytes=200_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    with Vllm(folder) as vllm:
        there = vllm.answer(native.prompts, LENGTH, native.stop_ids)
    assert there == theirs


def test_bfloat16_weights(export: Export, ask: Callable[[Path], Native]) -> None:
    folder = export("vllm", torch.bfloat16)
    rounded = ask(folder)
    with Vllm(folder) as vllm:
        there = vllm.answer(rounded.prompts, LENGTH, rounded.stop_ids)
    assert untied(rounded, there) == []


def test_bfloat16_arithmetic(export: Export, native: Native) -> None:
    # Rounding turns many a near tie into another answer, so only the acceptance is compared.
    with Vllm(export("vllm", torch.bfloat16), dtype="auto") as vllm:
        assert vllm.llm.llm_engine.model_config.dtype == torch.bfloat16
        there = vllm.answer(native.prompts, LENGTH, native.stop_ids)
    alike = answer_as_vllm_does(native.model, native.tokenizer, native.prompts, native.greedy)
    assert there.acceptance == pytest.approx(alike.acceptance, abs=0.05)


def change(source: Path, target: Path, edit: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a folder with other weights."""
    folder = copy_folder(source, target)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_swapped_halves_show_in_the_acceptance(
    hf_folder: Path, native: Native, theirs: Greedy, tmp_path: Path
) -> None:
    def swap(tensors: dict[str, Tensor]) -> None:
        name = "model.mtp_layers.0.input_proj.weight"
        hidden, token = tensors[name].chunk(2, dim=1)
        tensors[name] = torch.cat([token, hidden], dim=1)

    with Vllm(change(hf_folder, tmp_path / "swapped", swap)) as vllm:
        there = vllm.answer(native.prompts, LENGTH, native.stop_ids)
    assert untied(native, there) == []
    assert there.acceptance < theirs.acceptance - 5 * POINTS


def test_vllm_feeds_the_state_before_the_final_norm(
    hf_folder: Path, native: Native, theirs: Greedy, tmp_path: Path
) -> None:
    # Gains move from the head into the norms before it, by powers of two: no logit changes, and
    # no draft, unless the MTP layer reads the state behind the trunk's norm.
    hidden = native.model.config.hidden_size
    gains = 2.0 ** torch.randint(-4, 5, (hidden,), generator=torch.Generator().manual_seed(0))

    def move(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] /= gains
        tensors["model.norm.weight"] *= gains
        tensors["model.mtp_layers.0.final_layernorm.weight"] *= gains

    folder = change(hf_folder, tmp_path / "moved", move)
    with Vllm(folder) as vllm:
        there = vllm.answer(native.prompts, LENGTH, native.stop_ids)
    assert untied(native, there) == []
    assert there.acceptance == pytest.approx(theirs.acceptance, abs=POINTS)
    wrong = load_model(folder, dtype=torch.float32)
    wrong.config = wrong.config.model_copy(update={"mtp_hidden": "post_norm"})
    behind = answer_as_vllm_does(wrong, native.tokenizer, native.prompts, native.greedy)
    assert behind.acceptance < theirs.acceptance - 3 * POINTS


def test_heads_of_another_size_are_widened(native: Native, tmp_path: Path) -> None:
    # As nano's are, which vLLM does not run as they are. The weights are random.
    shape = {"hidden_size": 80, "num_attention_heads": 4, "head_dim": 20, "initializer_range": 0.2}
    model = MiMo(native.model.config.model_copy(update=shape))
    model.init_weights(torch.Generator().manual_seed(0))
    (tmp_path / "narrow").mkdir()
    write_model(model.eval(), tmp_path / "narrow", torch.float32, native.tokenizer)
    export_model(Model.from_folder(tmp_path / "narrow"), tmp_path / "wide", "vllm")
    prompts = native.prompts[:16]
    ours = answer(model, native.tokenizer, prompts, [32] * len(prompts))
    with Vllm(tmp_path / "wide") as vllm:
        there = vllm.answer(prompts, 32)
    assert [p for p in partings(model, prompts, ours, there) if not p.tied] == []
    alike = answer_as_vllm_does(model, native.tokenizer, prompts, ours)
    assert there.drafts == pytest.approx(alike.drafts, rel=0.01)


def test_the_trunk_as_qwen2_needs_no_remote_code(export: Export, native: Native) -> None:
    with Vllm(export("qwen2"), drafts=0, trust_remote_code=False) as vllm:
        there = vllm.answer(native.prompts, LENGTH, native.stop_ids)
    assert untied(native, there) == []


def test_chat_and_the_settings_of_the_folder(hf_folder: Path, native: Native) -> None:
    from vllm import SamplingParams

    with Vllm(hf_folder) as vllm:
        defaults = vllm.llm.get_default_sampling_params()
        assert (defaults.temperature, defaults.top_p) == (0.6, 0.95)
        context = native.model.config.max_position_embeddings
        assert vllm.llm.llm_engine.model_config.max_model_len == context
        hard = ["Ünï 日本 \\frac{1}{2}\n\n  1234", *native.questions[:30]]
        chats = [
            [{"role": "system", "content": ""}, {"role": "user", "content": question}]
            for question in hard
        ]
        greedy = SamplingParams(temperature=0, max_tokens=LENGTH)
        outputs = vllm.llm.chat(chats, greedy, use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == [
        native.tokenizer.chat_prompt(question) for question in hard
    ]
    # The end of a turn stops it without being told, and stays out of the text.
    for output, tokens in zip(outputs[1:], native.greedy.answers, strict=False):
        mine = output.outputs[0]
        if tokens[-1] == native.tokenizer.eos_id and list(mine.token_ids) == tokens:
            assert mine.finish_reason == "stop"
            assert mine.text == native.tokenizer.decode(tokens)
    assert any(output.outputs[0].finish_reason == "stop" for output in outputs[1:])


def test_a_wrong_answer_is_not_excused_as_a_tie(native: Native) -> None:
    changed = [list(tokens) for tokens in native.greedy.answers[:3]]
    changed[0][2] = (changed[0][2] + 1) % native.tokenizer.vocab_size
    changed[1].pop()
    found = partings(native.model, native.prompts, *(
        Greedy(answers, 0, 0) for answers in (native.greedy.answers[:3], changed)
    ))  # fmt: skip
    assert [(parting.prompt, parting.position) for parting in found] == [
        (0, 2),
        (1, len(changed[1])),
    ]
    assert not any(parting.tied for parting in found)
