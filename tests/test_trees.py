"""Names of leaves, and what two trees differ in."""

import jax
import numpy as np

from prune_jax.pruning import trees


def test_leaves_by_name_and_differences_by_hand():
    wanted = {"head": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}, "a": {"b": {"kernel": np.zeros(1)}}}
    assert list(trees.by_name(wanted)) == ["a/b/kernel", "head/bias", "head/kernel"]
    (path, _), *_ = jax.tree_util.tree_leaves_with_path(wanted)
    assert trees.place(path) == ("a", "b", "kernel") and trees.name(path[:-1]) == "a/b"
    found = {"head": {"kernel": np.ones((3, 4)), "scale": jax.ShapeDtypeStruct((), bool)}, "a": wanted["a"]}
    assert list(trees.differing(found, wanted).items()) == [
        ("head/bias", (trees.MISSING, (2,))),
        ("head/kernel", ((3, 4), (3, 2))),
        ("head/scale", ((), trees.MISSING)),
    ]
    assert trees.differing(wanted, jax.tree.map(np.ones_like, wanted)) == {}
