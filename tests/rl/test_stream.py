import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmimo.errors import UserError
from openmimo.rl.stream import PromptStream, epoch_order


def draws(stream: PromptStream, count: int) -> list[int]:
    return [stream.draw().prompt for _ in range(count)]


def test_every_epoch_is_a_fixed_shuffle_of_everything() -> None:
    stream = PromptStream(50, seed=3)
    first, second = draws(stream, 50), draws(stream, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert tuple(first) == epoch_order(50, 3, 0)
    assert tuple(first) != epoch_order(50, 4, 0)


def test_epoch_order_never_changes() -> None:
    # Recorded: a run must resume with the same order on any machine and version.
    assert epoch_order(8, 0, 0) == (6, 2, 3, 0, 7, 5, 1, 4)


def test_undone_draws_come_again_in_order() -> None:
    stream = PromptStream(20, seed=0)
    first = draws(stream, 10)
    stream.commit([False] * 4)
    assert draws(stream, 6) == first[4:]


def test_perfect_prompts_move_to_the_pool_and_the_main_stream_skips_them() -> None:
    stream = PromptStream(10, seed=1, easy_share=0.0)
    first = draws(stream, 10)
    stream.commit([index < 3 for index in range(10)])
    assert stream.pool_size == 3
    assert sorted(draws(stream, 7)) == sorted(first[3:])


def test_a_pool_prompt_that_fails_returns_to_the_main_stream() -> None:
    stream = PromptStream(4, seed=1, easy_share=0.5)
    draws(stream, 4)
    stream.commit([True, False, False, False])
    while not (draw := stream.draw()).from_pool:
        stream.commit([None])
    stream.commit([None])  # could not be scored: stays
    assert stream.pool_size == 1
    while not (draw := stream.draw()).from_pool:
        stream.commit([None])
    stream.commit([False])
    assert stream.pool_size == 0
    assert draw.prompt in draws(stream, 8)


def test_pool_share_of_draws_is_alpha() -> None:
    stream = PromptStream(3000, seed=5, easy_share=0.1)
    draws(stream, 3000)
    stream.commit([index < 1000 for index in range(3000)])
    from_pool = 0
    for _ in range(100):
        out = [stream.draw() for _ in range(40)]
        pool_prompts = Counter(draw.prompt for draw in out if draw.from_pool)
        assert all(count == 1 for count in pool_prompts.values())
        from_pool += len(pool_prompts)
        stream.commit([draw.from_pool for draw in out])
    assert from_pool / 4000 == pytest.approx(0.1, abs=0.02)


def test_a_small_pool_is_not_drawn_twice_before_a_commit() -> None:
    stream = PromptStream(100, seed=0, easy_share=0.9)
    draws(stream, 100)
    stream.commit([True] + [False] * 99)
    assert sum(stream.draw().from_pool for _ in range(50)) == 1


def test_only_the_pool_is_left() -> None:
    stream = PromptStream(3, seed=0)
    draws(stream, 3)
    stream.commit([True] * 3)
    out = [stream.draw() for _ in range(5)]
    assert all(draw.from_pool for draw in out)
    assert sorted(draw.prompt for draw in out[:3]) == [0, 1, 2]


STEPS = st.lists(
    st.tuples(
        st.integers(0, 6),  # draws beyond the cut
        st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=6),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 8), STEPS, STEPS)
def test_resume_and_running_ahead_change_nothing(
    size: int,
    before: list[tuple[int, list[bool | None]]],
    after: list[tuple[int, list[bool | None]]],
) -> None:
    """A stream saved in mid-step and resumed, never drawing ahead, sees the same prompts."""
    ahead = PromptStream(size, seed=9, easy_share=0.4)
    plain = PromptStream(size, seed=9, easy_share=0.4)

    def compare(steps: list[tuple[int, list[bool | None]]]) -> None:
        for extra, passed in steps:
            committed = draws(ahead, len(passed))
            draws(ahead, extra)
            ahead.commit(passed)
            assert draws(plain, len(passed)) == committed
            plain.commit(passed)
            assert plain.state_dict() == ahead.state_dict()

    compare(before)
    saved = plain.state_dict()
    draws(plain, 3)
    assert plain.state_dict() == saved
    plain = PromptStream(size, seed=9, easy_share=0.4)
    plain.load_state_dict(json.loads(json.dumps(saved)))
    compare(after)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="no problems"):
        PromptStream(0, seed=0)
    with pytest.raises(UserError, match="share"):
        PromptStream(5, seed=0, easy_share=1.0)
    stream = PromptStream(5, seed=0)
    with pytest.raises(UserError, match="size was 6 and is now 5"):
        stream.load_state_dict(PromptStream(6, seed=0).state_dict())
    with pytest.raises(UserError, match="seed"):
        stream.load_state_dict(PromptStream(5, seed=1).state_dict())
    stream.draw()
    with pytest.raises(ValueError, match="2 results for 1"):
        stream.commit([True, True])
