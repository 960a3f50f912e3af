import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.control.states import desired_states, digits, state
from worker.control.answers import Code
from worker.control.judge import Known, Missing, New, Refused, Same, judge
from worker.control.messages import DesiredState, digest, encode_state


def known(state: DesiredState) -> Known:
    assert state.generation is not None
    return Known(state.epoch, state.generation, digest(state), encode_state(state))


OURS = state()
KNOWN = known(OURS)
OTHER = digits(active="2")


def refusal(data: bytes, knowledge: Known | None = KNOWN) -> Refused:
    verdict = judge(data, "default", knowledge)
    assert isinstance(verdict, Refused)
    return verdict


def test_without_a_state_a_worker_puts_back_the_newest_that_it_knows() -> None:
    assert judge(None, "default", KNOWN) == Missing(restore=KNOWN.document)


def test_a_worker_that_knows_nothing_puts_nothing_back() -> None:
    assert judge(None, "default", None) == Missing()
    assert refusal(b"broken", None).restore is None


def test_whatever_is_valid_is_new_to_a_worker_that_knows_nothing() -> None:
    assert judge(encode_state(OURS), "default", None) == New(OURS)


def test_what_it_knows_is_the_same_in_whatever_spacing_and_order() -> None:
    assert judge(KNOWN.document, "default", KNOWN) == Same()
    assert judge(KNOWN.document.replace(b'":', b'" : '), "default", KNOWN) == Same()


@pytest.mark.parametrize("generation", [8, 99])
def test_any_higher_generation_is_new(generation: int) -> None:
    newer = OTHER._replace(generation=generation)
    assert judge(encode_state(newer), "default", KNOWN) == New(newer)


def test_a_lower_generation_is_stale_and_replaced_by_what_the_worker_knows() -> None:
    verdict = refusal(encode_state(OTHER._replace(generation=5)))
    assert verdict.code is Code.STATE_STALE
    assert verdict.reason == "generation 5 is older than 7, taken before"
    assert (verdict.restore, verdict.expected) == (KNOWN.document, 5)


def test_of_two_states_of_one_number_neither_wins() -> None:
    verdict = refusal(encode_state(OTHER))
    assert verdict.code is Code.STATE_CONFLICT
    assert digest(OTHER)[:12] in verdict.reason
    assert digest(OURS)[:12] in verdict.reason
    assert verdict.restore is None


def test_a_state_of_another_fleet_is_refused_and_left_alone() -> None:
    verdict = refusal(encode_state(OTHER._replace(fleet="other", generation=99)))
    assert verdict == Refused(
        Code.STATE_FLEET, "the desired state is of fleet other, this worker is of default"
    )


def test_an_epoch_that_supersedes_ours_is_new_whatever_its_number() -> None:
    taking_over = OTHER._replace(epoch="e-2", supersedes=("e-0", "e-1"), generation=2)
    assert judge(encode_state(taking_over), "default", KNOWN) == New(taking_over)


def test_an_epoch_that_does_not_supersede_ours_is_refused_and_left_alone() -> None:
    verdict = refusal(encode_state(OTHER._replace(epoch="e-2", generation=99)))
    assert verdict == Refused(
        Code.STATE_EPOCH,
        "epoch e-2 does not supersede e-1, of which this worker knows generation 7: "
        "a state to be taken must name it under supersedes (a worker forgets what it knew when "
        "control/default.json is removed from its data_dir while it is stopped)",
    )


@pytest.mark.parametrize(("generation", "restored"), [(6, True), (7, False), (9, False)])
def test_an_epoch_that_ours_supersedes_is_stale(generation: int, *, restored: bool) -> None:
    ours = known(OURS._replace(supersedes=("e-0",)))
    old = OTHER._replace(epoch="e-0", generation=generation)
    verdict = refusal(encode_state(old), ours)
    assert verdict.code is Code.STATE_STALE
    assert verdict.reason == "epoch e-0 is older than this worker's, e-1"
    assert verdict.restore == (ours.document if restored else None)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", None),
        (b"\xff\xfe", None),
        (b"[1, 2]", None),
        (b'"generation"', None),
        (b'{"generation": 3}', 3),
        (b'{"generation": 3.0}', 3),  # Lua's 3
        (b'{"generation": 3.5}', None),
        (b'{"generation": 0}', None),
        (b'{"generation": true}', None),
        (b'{"generation": "3"}', None),
        (encode_state(OURS._replace(generation=6, default="gone")), 6),
    ],
)
def test_a_broken_state_is_refused_and_replaced(data: bytes, expected: int | None) -> None:
    verdict = refusal(data)
    assert verdict.code is Code.STATE_INVALID
    assert (verdict.restore, verdict.expected) == (KNOWN.document, expected)


@pytest.mark.parametrize("generation", [7, 8])
def test_a_broken_state_that_is_not_older_may_be_of_a_later_release_and_stays(
    generation: int,
) -> None:
    document = encode_state(OURS._replace(generation=generation)).replace(b'"default"', b'"later"')
    verdict = refusal(document)
    assert verdict.code is Code.STATE_INVALID
    assert "default" in verdict.reason
    assert verdict.restore is None


@given(
    stored=st.none() | st.binary() | desired_states().map(encode_state),
    ours=st.none() | desired_states(),
    same=st.booleans(),
)
def test_nothing_that_can_be_read_makes_a_worker_go_back(
    stored: bytes | None, ours: DesiredState | None, *, same: bool
) -> None:
    fleet = ours.fleet if ours else "default"
    knowledge = None if ours is None else known(ours)
    if same and ours is not None and stored is not None:
        stored = encode_state(ours._replace(generation=(ours.generation or 0) % 11 + 1))
    verdict = judge(stored, fleet, knowledge)
    if isinstance(verdict, New):
        assert verdict.state.fleet == fleet
        if ours is not None:
            same_epoch = verdict.state.epoch == ours.epoch
            assert not same_epoch or (verdict.state.generation or 0) > (ours.generation or 0)
            assert same_epoch or ours.epoch in verdict.state.supersedes
        # once taken, it is what the worker knows
        assert judge(stored, fleet, known(verdict.state)) == Same()
    if verdict.restore is not None:
        assert knowledge is not None
        assert verdict.restore == knowledge.document
        assert verdict.expected is None or verdict.expected < knowledge.generation
        assert judge(verdict.restore, fleet, None) == New(ours)  # type: ignore[arg-type]  # is one
