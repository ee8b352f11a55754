"""Hypothesis strategies of the kernel tests, separate because GPU machines need no Hypothesis."""

from hypothesis import strategies as st
from kernel_cases import DTYPES, Case, make_case


@st.composite
def cases(draw: st.DrawFn, *, largest: int = 600) -> Case:
    """Any shape, dtype, scale and cap, with and without bias."""
    return make_case(
        draw(st.integers(0, 2**31), label="seed"),
        passes=draw(st.sampled_from([1, 1, 2, 3, 5])),
        rows=draw(st.sampled_from([1, 2, 7, 31, 130])),
        width=draw(st.sampled_from([1, 16, 17, 80])),
        vocabulary=draw(st.sampled_from([1, 2, 3, 63, 64, 97, 500, largest])),
        dtype=draw(st.sampled_from(DTYPES)),
        spread=draw(st.sampled_from([0.0, 0.1, 1.0, 10.0])),
        bias=draw(st.booleans()),
        target=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 0.0625, 3.0])),
        softcap=draw(st.sampled_from([None, None, 30.0, 2.0, 1e4])),
    )
