"""The packed model with its cache gives what a full pass of `MiMo` gives, whatever was cached."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openmimo.config.schema import RopeScaling
from openmimo.errors import UserError
from openmimo.inference import matrix, packed
from openmimo.inference.cache import KVCache, zeros_on_demand
from openmimo.inference.matrix import Matrix
from openmimo.inference.packed import PackedModel, Span, compute_dtype
from openmimo.model.mimo import MiMo

from .engines import MakeModel

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
LENGTH = 32
TOKENS = 24

# A prefill, single tokens, a chunk, single tokens.
STEPS = [7, 1, 1, 1, 6, 1, 1, 6]

LLAMA3 = RopeScaling(
    kind="llama3", factor=4, low_freq_factor=1, high_freq_factor=4,
    original_max_position_embeddings=16,
)  # fmt: skip
CHANGES: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 1},
    {"head_dim": 12, "rms_norm_eps": 1e-2},
    {"mtp_hidden": "post_norm"},
    {"mtp_mask_first": True},
    {"rope_scaling": LLAMA3},
    {"rope_scaling": RopeScaling(kind="linear", factor=3)},
    {"rope_theta": 50.0},
]


class Packed:
    """A packed model, a cache for its trunk and one for its MTP layers, both full of noise."""

    def __init__(self, model: MiMo, rows: int = 2, **options: Any) -> None:
        self.layers = len(model.mtp_layers)
        self.model = PackedModel(model, LENGTH, self.layers, **options)
        self.trunk = self._noise(model.config.num_hidden_layers, rows)
        self.heads = self._noise(self.layers, rows)

    def _noise(self, layers: int, rows: int) -> KVCache:
        model = self.model
        cache = KVCache(model.config, layers, rows, LENGTH, model.dtype, model.device)
        for layer in cache.layers:
            layer.normal_(std=3)
        return cache

    @torch.no_grad()
    def run(
        self, ids: Tensor, positions: Tensor, rows: slice, length: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states of ids[n, positions], and the head's inputs of all MTP layers."""
        span = Span(self.model, rows, positions, length or int(positions.max()) + 1)

        def at(shift: int) -> Tensor:
            return ids[torch.arange(len(ids))[:, None], positions + shift]

        hidden = self.model.hidden(at(0), span, self.trunk)
        drafts = [
            self.model.draft(layer, hidden, at(1 + layer), span, self.heads)
            for layer in range(self.layers)
        ]
        return hidden, drafts

    def decode(
        self, ids: Tensor, steps: Sequence[int], begin: int = 0, rows: slice = slice(0, 2)
    ) -> tuple[Tensor, list[Tensor]]:
        """`run` in steps of several tokens each."""
        parts = []
        for step in steps:
            parts.append(self.run(ids, between(begin, begin + step, len(ids)), rows))
            begin += step
        hidden, drafts = zip(*parts, strict=True)
        return torch.cat(hidden, 1), [torch.cat(layer, 1) for layer in zip(*drafts, strict=True)]


def between(begin: int, end: int, rows: int = 2) -> Tensor:
    return torch.arange(begin, end).expand(rows, -1)


@torch.no_grad()
def full(model: MiMo, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The same from MiMo itself: no cache, no steps."""
    positions = between(0, TOKENS, len(ids))
    hidden = model.hidden(ids[:, :TOKENS], positions)
    return hidden, [
        model.mtp_draft(layer, hidden, ids[:, 1 + layer : 1 + layer + TOKENS], positions)
        for layer in range(len(model.mtp_layers))
    ]


def assert_equal_passes(
    got: tuple[Tensor, list[Tensor]],
    expected: tuple[Tensor, list[Tensor]],
    part: slice = slice(None),
) -> None:
    torch.testing.assert_close(got[0], expected[0][:, part], **CLOSE)
    for a, b in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(a, b[:, part], **CLOSE)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(61, (2, TOKENS + 4), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("changes", CHANGES)
def test_decoding_equals_the_full_pass(
    make_model: MakeModel, ids: Tensor, changes: dict[str, Any]
) -> None:
    model = make_model(**changes)
    expected = full(model, ids)
    for steps in (STEPS, [TOKENS], [1] * TOKENS):
        assert_equal_passes(Packed(model).decode(ids, steps), expected)
    with torch.no_grad():
        logits = Packed(model).model.logits(expected[0])
        torch.testing.assert_close(logits, model.logits(expected[0]), **CLOSE)


@pytest.mark.parametrize(("single_rows", "packs"), [(True, True), (False, True), (True, False)])
def test_every_kind_of_matrix_product_decodes_as_the_full_pass(
    model: MiMo, ids: Tensor, monkeypatch: pytest.MonkeyPatch, single_rows: bool, packs: bool
) -> None:
    monkeypatch.setattr(packed, "SMALL", packed.SMALL if single_rows else 0)
    if not packs:
        monkeypatch.setattr(matrix, "can_pack", lambda dtype: False)
    assert_equal_passes(Packed(model).decode(ids, STEPS), full(model, ids))
    one = ids[:1]
    assert_equal_passes(Packed(model, 1).decode(one, STEPS, rows=slice(0, 1)), full(model, one))


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("single_rows", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packs", [True, False])
def test_matrix_products(
    monkeypatch: pytest.MonkeyPatch, rows: int, single_rows: torch.dtype | None, packs: bool
) -> None:
    if not packs:
        monkeypatch.setattr(matrix, "can_pack", lambda dtype: False)
    narrow = rows == 1 and packs and single_rows == torch.bfloat16
    close = {"rtol": 0.02, "atol": 0.05} if narrow else {"rtol": 1.3e-6, "atol": 1e-5}
    generator = torch.Generator().manual_seed(0)
    product = Matrix((24, 40), torch.float32, torch.device("cpu"), single_rows)
    x = torch.randn(rows, 40, generator=generator)
    bias, sums = torch.randn(24, generator=generator), torch.randn(rows, 24, generator=generator)
    before = sums.clone()
    for _ in range(2):  # the second weights replace the first
        weight = torch.randn(24, 40, generator=generator)
        product.load(weight)
        torch.testing.assert_close(product(x), x @ weight.T, **close)
        torch.testing.assert_close(product(x, bias), x @ weight.T + bias, **close)
        torch.testing.assert_close(product.add_to(sums, x), sums + x @ weight.T, **close)
        assert torch.equal(sums, before)
        weight.zero_()  # the values were copied
        assert product(x).abs().sum() > 0


@pytest.mark.parametrize(("pays", "rows"), [(True, torch.bfloat16), (False, torch.float32)])
def test_only_a_bfloat16_model_is_multiplied_in_bfloat16_and_only_where_that_pays(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, pays: bool, rows: torch.dtype
) -> None:
    monkeypatch.setattr(packed, "bfloat16_rows_pay", lambda: pays)
    asked = []
    monkeypatch.setattr(
        packed.Maker, "matrix", lambda self, *shape: asked.append(self.single_rows) or Matrix(
            shape, self.dtype, self.device, self.single_rows
        )
    )  # fmt: skip
    PackedModel(make_model(), 32, dtype=torch.float32)
    assert set(asked) == {torch.float32}
    asked.clear()
    PackedModel(make_model().to(torch.bfloat16), 32, dtype=torch.float32)
    assert set(asked) == {rows}


def test_the_draft_head_is_the_head_of_the_first_ids(model: MiMo) -> None:
    whole, part = PackedModel(model, 32, 1), PackedModel(model, 32, 1, draft_vocab=20)
    assert whole.draft_head is whole.head
    x = torch.randn(3, model.config.hidden_size)
    torch.testing.assert_close(part.draft_head(x), whole.head(x)[:, :20])
    assert part.draft_head.shape == (20, model.config.hidden_size)
    with torch.no_grad():
        changed = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    part.update(changed)
    torch.testing.assert_close(part.draft_head(x), part.head(x)[:, :20])


def test_rejected_tokens_are_overwritten(model: MiMo, ids: Tensor) -> None:
    decoder, expected = Packed(model), full(model, ids)
    decoder.decode(ids, [10])
    wrong = ids.clone()
    wrong[:, 10:] = (wrong[:, 10:] + 1) % 61
    decoder.decode(wrong, [5], begin=10)
    # Only two true tokens follow, then more; the rejected entries beyond them stay in the cache.
    for begin, end in ((10, 12), (12, 13), (13, TOKENS)):
        # Longer than needed: what lies past a position is invisible.
        got = decoder.run(ids, between(begin, end), slice(0, 2), length=TOKENS)
        assert_equal_passes(got, expected, slice(begin, end))


@pytest.mark.parametrize("width", [1, 4])
def test_rows_at_different_positions(model: MiMo, ids: Tensor, width: int) -> None:
    """Continuous batching: sequences of unequal length take one step together."""
    decoder, expected = Packed(model, rows=5), full(model, ids)
    lengths = [9, 4]
    for n, length in enumerate(lengths):
        decoder.decode(ids[n : n + 1], [length], rows=slice(2 + n, 3 + n))
    positions = torch.tensor(lengths)[:, None] + torch.arange(width)
    got = decoder.run(ids, positions, slice(2, 4))
    for n, length in enumerate(lengths):
        one = got[0][n : n + 1], [layer[n : n + 1] for layer in got[1]]
        row = expected[0][n : n + 1], [layer[n : n + 1] for layer in expected[1]]
        assert_equal_passes(one, row, slice(length, length + width))


def test_copied_rows_continue_like_their_source(model: MiMo, ids: Tensor) -> None:
    """A group of samples shares one prefill; copies are made all at once, even in a circle."""
    decoder, expected = Packed(model, rows=4), full(model, ids)
    decoder.decode(ids, [8])
    for cache in (decoder.trunk, decoder.heads):
        before = [layer.clone() for layer in cache.layers]
        cache.copy_rows(torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0, 3, 2]), 8)
        for old, layer in zip(before, cache.layers, strict=True):
            assert torch.equal(layer[:, :, 8:], old[:, :, 8:])
    both = torch.cat([ids.flip(0), ids.flip(0)])
    got = decoder.decode(both, [4, 1], begin=8, rows=slice(0, 4))
    doubled = expected[0].flip(0).repeat(2, 1, 1), [x.flip(0).repeat(2, 1, 1) for x in expected[1]]
    assert_equal_passes(got, doubled, slice(8, 13))


def test_bfloat16_is_as_close_as_the_model_itself_in_bfloat16(
    make_model: MakeModel, ids: Tensor
) -> None:
    decoder = Packed(make_model(), dtype=torch.bfloat16)
    assert decoder.model.norm.dtype == decoder.trunk.layers[0].dtype == torch.bfloat16
    hidden, drafts = decoder.decode(ids, STEPS)
    exact, narrow = full(make_model(), ids), full(make_model().bfloat16(), ids)
    outputs = [(hidden, exact[0], narrow[0]), *zip(drafts, exact[1], narrow[1], strict=True)]
    for got, true, other in outputs:
        assert got.dtype == torch.bfloat16
        assert (got.float() - true).norm() < 1.3 * (other.float() - true).norm()
        assert (got.float() - true).norm() < 0.1 * true.norm()


@pytest.mark.parametrize(
    ("dtype", "fast", "computed"),
    [
        (torch.bfloat16, True, torch.bfloat16),
        (torch.bfloat16, False, torch.float32),
        (torch.float16, True, torch.float32),
        (torch.float32, True, torch.float32),
    ],
)
def test_the_dtype_is_the_models_where_the_cpu_is_fast_at_it(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, fast: bool,
    computed: torch.dtype,
) -> None:  # fmt: skip
    monkeypatch.setattr(packed, "cpu_has_bfloat16", lambda: fast)
    model = make_model(num_hidden_layers=1).to(dtype)
    assert compute_dtype(dtype, torch.device("cpu")) == computed
    assert PackedModel(model, LENGTH).norm.dtype == computed


@pytest.mark.parametrize("as_state_dict", [True, False])
def test_an_update_leaves_nothing_of_the_old_weights(
    make_model: MakeModel, ids: Tensor, as_state_dict: bool
) -> None:
    new = make_model(seed=2)
    decoder = Packed(make_model(seed=1))
    decoder.decode(ids, [TOKENS])
    decoder.model.update(new.state_dict() if as_state_dict else new)
    assert_equal_passes(decoder.decode(ids, STEPS), full(new, ids))
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()  # the weights were copied
    assert_equal_passes(decoder.decode(ids, STEPS), full(make_model(seed=2), ids))


def test_a_model_brings_its_rope_base_and_a_state_dict_keeps_the_old_one(
    make_model: MakeModel, ids: Tensor
) -> None:
    model = make_model()
    decoder = Packed(model)
    model.rope_base = 77.0
    decoder.model.update(model)
    assert_equal_passes(decoder.decode(ids, [TOKENS]), full(model, ids))
    decoder.model.update(model.state_dict())
    assert_equal_passes(decoder.decode(ids, [TOKENS]), full(model, ids))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.k_proj.bias",
        "model.layers.0.mlp.down_proj.weight",
        "model.mtp_layers.2.input_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
@pytest.mark.parametrize("broken", ["missing", "shape"])
def test_weights_that_do_not_fit_are_refused_and_change_nothing(
    make_model: MakeModel, ids: Tensor, name: str, broken: str
) -> None:
    decoder = Packed(make_model(seed=1))
    expected = decoder.decode(ids, [TOKENS])
    tensors = make_model(seed=2).state_dict()
    if broken == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:1]
    with pytest.raises(UserError, match=name):
        decoder.model.update(tensors)
    assert_equal_passes(decoder.decode(ids, [TOKENS]), expected)


def test_consumed_weights_are_freed_and_the_result_is_the_same(
    make_model: MakeModel, ids: Tensor
) -> None:
    model = make_model()
    expected = full(model, ids)
    decoder = Packed(model, consume=True)
    assert sum(p.untyped_storage().nbytes() for p in model.parameters()) == 0
    assert_equal_passes(decoder.decode(ids, STEPS), expected)


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_a_cache_takes_memory_only_where_it_is_written() -> None:
    before = resident_bytes()
    cache = zeros_on_demand((1024, 1024, 256), torch.float32, "cpu")  # 1 GiB
    cache[7, :5] = 1
    assert resident_bytes() - before < 2**28
    assert cache[6:8, :6].sum() == 5 * 256
    assert (cache.dtype, cache.shape) == (torch.float32, (1024, 1024, 256))
    assert np.shares_memory(cache.numpy(), cache[0].numpy())
