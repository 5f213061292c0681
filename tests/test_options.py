"""Options declared once: defaults, ranges, types, and the messages that name key, value and what is allowed."""

import inspect

import numpy as np
import pytest

import prune_jax as pj
from prune_jax import methods
from prune_jax.pruning.options import declared, made_from, option, options


@options
class Some:
    """Of every kind."""

    flag: bool = option(False, "A switch.")
    count: int = option(3, "A count.", 1, 10)
    rate: float = option(0.5, "A rate.", 0, 1, inclusive=False)
    above: float = option(2.0, "No upper bound.", 0, inclusive=False)
    name: str = option("a", "A choice.", choices=("a", "b"))
    maybe: int | None = option(None, "Optional.", 1)
    text: str = option("", "Any text.", in_config=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"flag": 1}, "flag is 1; allowed: True, False"),
        ({"count": 0}, "count is 0; allowed: 1 to 10"),
        ({"count": 2.0}, "count is 2.0; allowed: 1 to 10"),
        ({"count": True}, "count is True; allowed: 1 to 10"),
        ({"count": None}, "count is None; allowed: 1 to 10"),
        ({"rate": 0}, "rate is 0; allowed: above 0 and below 1"),
        ({"rate": 1.0}, "rate is 1.0; allowed: above 0 and below 1"),
        ({"rate": "0.5"}, "rate is '0.5'; allowed: above 0 and below 1"),
        ({"rate": float("nan")}, "rate is nan; allowed: above 0 and below 1"),
        ({"above": float("inf")}, "above is inf; allowed: above 0"),
        ({"name": "c"}, "name is 'c'; allowed: a, b"),
        ({"maybe": 0}, "maybe is 0; allowed: at least 1"),
        ({"text": 3}, "text is 3; allowed: a str"),
    ],
)
def test_a_value_that_is_not_allowed_is_told(given, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Some(**given)


def test_numbers_of_numpy_and_whole_rates_are_taken():
    made = Some(count=np.int64(4), rate=np.float32(0.25), above=1, maybe=np.int32(2))
    assert (made.count, made.rate, made.above, made.maybe) == (4, 0.25, 1, 2)
    assert pj.movement(frequency=np.int64(3)).every == 3


def test_declarations_say_what_is_allowed():
    listed = declared(Some)
    assert [one.allowed for one in listed.values()] == [
        "True, False", "1 to 10", "above 0 and below 1", "above 0", "a, b", "at least 1", "a str",
    ]  # fmt: skip
    assert listed["maybe"].optional and not listed["text"].in_config and listed["count"].default == 3
    with pytest.raises(AttributeError):
        Some().count = 4


def test_an_unknown_option_lists_those_that_there_are():
    @made_from(Some)
    def make(given):
        """Makes it."""
        return given.count

    assert make() == 3 and make(count=5) == 5 and make.options is Some
    assert list(inspect.signature(make).parameters) == list(declared(Some))
    with pytest.raises(TypeError, match=r"there is no option 'cuont'; did you mean 'count'\? allowed: flag, count"):
        make(cuont=5)
    with pytest.raises(TypeError, match="there is no option 'alpha'; it takes none"):
        pj.magnitude(alpha=1)
    with pytest.raises(TypeError, match="1 options are given by place; it takes none"):
        pj.magnitude(0.9)
    with pytest.raises(TypeError, match="8 options are given by place; allowed: at most 7, flag, count"):
        make(*range(8))
    with pytest.raises(TypeError, match="the option 'flag' is given twice"):
        make(True, flag=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pj.movement(frequency=0), "frequency is 0; allowed: at least 1"),
        (lambda: pj.movement(threshold="firm"), "threshold is 'firm'; allowed: hard, soft"),
        (lambda: pj.spt(epsilon=0), "epsilon is 0; allowed: above 0 and below 1"),
        (lambda: pj.spt(credit="head"), "credit is 'head'; allowed: weight, layer, group"),
        (lambda: pj.spt(antithetic=True, explorations=3), "explorations is 3; allowed: an even number with antithetic"),
        (lambda: pj.spt(credit="layer", absolute=True), "absolute is True; allowed: False with credit=layer"),
        (lambda: pj.spt(inside="movement"), "inside is 'movement'; allowed: magnitude with credit=weight"),
        (lambda: pj.rigl(fraction=1.5), "fraction is 1.5; allowed: 0 to 1"),
        (lambda: pj.soft_weight_sharing(components=1), "components is 1; allowed: 2 to 256"),
        (lambda: pj.Rule(sparsity=50), "sparsity is 50; allowed: 0 to 1"),
        (lambda: pj.Rule(keep="yes"), "keep is 'yes'; allowed: True, False"),
    ],
)
def test_methods_and_rules_tell_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


@pytest.mark.parametrize("name", methods.REGISTRY)
def test_every_method_of_the_registry_is_made_of_its_options(name):
    listed, method = methods.options(name), methods.maker(name)()
    assert method.name == name and methods.scheduled(name) == method.scheduled
    for key, one in listed.items():
        assert one.permits(one.default), key
        assert one.text.endswith(".") and one.text[0].isupper(), key
    public = {"sws": "soft_weight_sharing", "baseline": None}.get(name, name)
    assert public is None or getattr(pj, public) is methods.maker(name)


def test_the_public_face_is_what_it_lists():
    for name in pj.__all__:
        assert getattr(pj, name) is not None and name in dir(pj)
    with pytest.raises(AttributeError, match="has no attribute 'prunes'"):
        pj.prunes  # noqa: B018
