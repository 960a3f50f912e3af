from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.control.messages import desired
from worker.control.reconciler import Activate, Actual, Load, Step, Unload, plan, reconcile
from worker.errors import ModelError
from worker.types import ModelRef

NOTHING = Actual(frozenset(), {})
D1, D2, C1 = ModelRef("digits", "1"), ModelRef("digits", "2"), ModelRef("cats", "1")


@pytest.mark.parametrize(
    ("models", "actual", "steps"),
    [
        ({"digits": "1"}, NOTHING, (Load(D1), Activate(D1))),
        (
            {"digits": "1", "cats": "1"},
            NOTHING,
            (Load(D1), Load(C1), Activate(D1), Activate(C1)),
        ),
        ({"digits": "1"}, Actual(frozenset({D1}), {"digits": "1"}), ()),
        ({"digits": "1"}, Actual(frozenset({D1}), {}), (Activate(D1),)),
        (
            {"digits": "2"},
            Actual(frozenset({D1}), {"digits": "1"}),
            (Load(D2), Activate(D2), Unload(D1)),
        ),
        (
            {"digits": "1"},
            Actual(frozenset({D1, D2, C1}), {"digits": "2", "cats": "1"}),
            (Activate(D1), Unload(C1), Unload(D2)),
        ),
    ],
)
def test_the_plan_goes_from_actual_to_desired(
    models: dict[str, str], actual: Actual, steps: tuple[Step, ...]
) -> None:
    assert plan(desired(models, next(iter(models))), actual) == steps


class Shelf:
    """A registry of names alone; `broken` versions do not load."""

    def __init__(self, broken: frozenset[ModelRef] = frozenset()) -> None:
        self.loaded: frozenset[ModelRef] = frozenset()
        self.active: Mapping[str, str] = {}
        self.named: Mapping[str, str] = {}
        self.broken = broken

    def expect(
        self, models: Mapping[str, str], default: str, *, generation: int | None = None
    ) -> None:
        assert default in models
        self.named = models
        self.generation = generation

    async def load(self, ref: ModelRef) -> None:
        if ref in self.broken:
            raise ModelError("golden sample differs", file=str(ref))
        self.loaded |= {ref}

    def activate(self, ref: ModelRef) -> None:
        assert ref in self.loaded
        self.active = {**self.active, ref.name: ref.version}

    async def unload(self, ref: ModelRef) -> None:
        assert self.active.get(ref.name) != ref.version or ref.name not in self.named
        self.loaded -= {ref}
        self.active = {name: v for name, v in self.active.items() if ModelRef(name, v) != ref}


async def test_what_fails_is_reported_and_the_old_version_serves_on() -> None:
    shelf = Shelf(frozenset({D2}))
    assert await reconcile(desired({"digits": "1"}, "digits"), shelf) == ()
    (failure,) = await reconcile(desired({"digits": "2", "cats": "1"}, "digits"), shelf)
    assert failure.step == Load(D2)
    assert "golden sample differs" in str(failure.error)
    assert shelf.active == {"digits": "1", "cats": "1"}
    assert shelf.loaded == {D1, C1}


async def test_a_failed_step_is_tried_again_by_the_next_reconciliation() -> None:
    shelf = Shelf(frozenset({D2}))
    state = desired({"digits": "2"}, "digits")
    assert len(await reconcile(state, shelf)) == 1
    shelf.broken = frozenset()
    assert await reconcile(state, shelf) == ()
    assert shelf.active == {"digits": "2"}


states = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.sampled_from(["1", "2", "3"]), min_size=1
)


@given(history=st.lists(states, min_size=1, max_size=6))
async def test_any_history_ends_in_the_last_state_and_then_there_is_nothing_to_do(
    history: list[dict[str, str]],
) -> None:
    shelf = Shelf()
    for models in history:
        state = desired(models, next(iter(models)))
        assert await reconcile(state, shelf) == ()
        assert shelf.active == models
        assert shelf.loaded == set(state.refs)
        assert plan(state, Actual(shelf.loaded, shelf.active)) == ()
