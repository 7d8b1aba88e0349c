"""Texts that arrive in pieces."""

from hypothesis import strategies as st


@st.composite
def pieces(draw, text):
    """`text` in pieces, some of them empty."""
    whole = draw(text)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=3)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
