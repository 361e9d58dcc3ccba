"""Readings of scenes as a perfect probe would give them."""

import jax.numpy as jnp
import numpy as np

from aigc_jax.data import shapes
from aigc_jax.metrics.attributes import CLASSES, Reading

M = 4  # objects in a reading
CUTS = np.cumsum([0, *CLASSES])


def reading_of(scene, background, rng, sharpness=8.0):
    """A reading of scenes that is right, its objects in any order; all else is noise."""
    n = len(scene)
    present = np.full((n, M), -6.0)
    centre = rng.uniform(size=(n, M, 2))
    classes = rng.normal(size=(n, M, sum(CLASSES)))
    for i, objects in enumerate(scene):
        places = rng.permutation(M)
        for place, (there, *labels, x, y, _) in zip(places, objects, strict=False):
            if there:
                present[i, place], centre[i, place] = 6, (x, y)
                for a, label in enumerate(labels):
                    classes[i, place, CUTS[a] + int(label)] += sharpness
    for a in range(4):
        part = slice(CUTS[a], CUTS[a + 1])
        classes[..., part] -= np.log(np.exp(classes[..., part]).sum(-1, keepdims=True))
    behind = rng.normal(size=(n, len(shapes.BACKGROUNDS)))
    behind[np.arange(n), background] += sharpness
    behind -= np.log(np.exp(behind).sum(-1, keepdims=True))
    return Reading(*(x.astype(np.float32) for x in (present, centre, classes, behind)))


def packed(reading):
    return np.asarray(Reading(*map(jnp.asarray, reading)).packed())
