"""What vLLM reports, in the protocol's terms."""

import numpy as np

from openmimo.inference.vllm_common import (
    engine_stats,
    join_tokens,
    make_prompt,
    make_tokens,
    read_counters,
)

METRICS = """
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 1.5e+02
vllm:generation_tokens_total{engine="1",model_name="m"} 50.0
vllm:generation_tokens_created{engine="0",model_name="m"} 1.7e+09
vllm:prompt_tokens_total{engine="0",model_name="m"} 300.0
vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 64.0
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 120.0
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 120.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 90.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 90.0
process_resident_memory_bytes 1.0e+09
"""


def test_counters_of_all_engines_since_the_start() -> None:
    now = read_counters(METRICS)
    start = {"generation_tokens": 20.0, "spec_decode_num_drafts": 20.0, "prompt_tokens": 36.0}
    stats = engine_stats(now, start, slots=8, drafts=1)
    assert (stats.generated_tokens, stats.row_steps) == (180, 90)
    assert (stats.prefilled_tokens, stats.shared_tokens) == (200, 64)
    assert (stats.drafts_offered, stats.drafts_reached, stats.drafts_accepted) == (
        [100],
        [100],
        [90],
    )
    assert stats.acceptance == [0.9]
    assert stats.tokens_per_forward == 2
    plain = engine_stats(now, start, slots=8, drafts=0)
    assert (plain.drafts_offered, plain.acceptance, plain.row_steps) == ([], [], 180)


def test_the_sampled_token_is_no_alternative_unless_it_is_among_the_best() -> None:
    tokens = make_tokens([7, 3], [{3: -0.5, 7: -4.0, 9: -1.5}, {3: -0.1, 5: -3.0}], 2)
    assert tokens.token_ids.tolist() == [7, 3]
    np.testing.assert_allclose(tokens.log_probs, [-4.0, -0.1])
    assert tokens.top_ids.tolist() == [[3, 9], [3, 5]]
    np.testing.assert_allclose(tokens.top_log_probs, [[-0.5, -1.5], [-0.1, -3.0]])


def test_without_alternatives_the_arrays_are_empty_but_shaped() -> None:
    tokens = make_tokens([7], [{7: -4.0}], 0)
    assert tokens.top_ids.shape == tokens.top_log_probs.shape == (1, 0)
    assert make_tokens([], [], 3).top_ids.shape == (0, 3)


def test_the_first_token_of_a_prompt_has_no_score() -> None:
    prompt = make_prompt([5, 6], [None, {6: -2.0, 8: -1.0}], 1)
    assert prompt.token_ids.tolist() == [5, 6]
    np.testing.assert_allclose(prompt.log_probs, [np.nan, -2.0])
    assert prompt.top_ids.tolist() == [[-1], [8]]
    assert make_prompt([5], [None], 1).token_ids.tolist() == [5]


def test_joined_parts_can_be_read_from_anywhere() -> None:
    parts = [make_tokens([i], [{i: -1.0 * i, 0: -0.5}], 1) for i in range(1, 5)]
    rest = join_tokens(parts, 2)
    assert rest.token_ids.tolist() == [3, 4]
    assert rest.log_probs.tolist() == [-3, -4]
    assert rest.top_ids.tolist() == [[0], [0]]
    assert len(join_tokens(parts, 9).token_ids) == 0
