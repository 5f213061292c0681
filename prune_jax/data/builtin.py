"""A GLUE-like corpus made from rules, so that everything runs without a download.

Words are pseudo-words of two or three syllables, drawn once by a fixed seed and divided into classes. All three tasks
are a pure function of (task, size, seed); 2% of the labels are wrong at random, so no score is perfect.

single (sentiment, accuracy): 8 to 16 words; 2 to 4 of them are polar (+1 or -1), three in four of a sentence's own
  mood, the rest neutral. An intensifier right before a polar word doubles it; where a contrast word stands, only what
  follows it counts; a negator, wherever it stands, turns the whole sentence round, and two in five have one. The label
  is the sign of the sum, which is never 0. Counting words gets nowhere near: the sign is a product of two features, so
  it takes the hidden layers, and pruning them hurts.
pair (entailment, accuracy): the premise states three facts "subject verb object", no word twice, with fillers between;
  the hypothesis states one fact. It is entailed if the premise states it, each word itself or its synonym. In half of
  the other cases one word of the fact is new, in the other half it comes from another fact of the premise.
regression (similarity 0 to 5, Pearson and Spearman): the second sentence keeps k of the first one's six content words,
  s of them as synonyms; the score is 5 * (k - s / 2) / 6 plus noise of standard deviation 0.15, clipped to 0..5.
"""

import numpy as np

_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
_NOISE = 0.02


def _words(count: int) -> list[str]:
    rng = np.random.default_rng(7)
    words: dict[str, None] = {}  # in the order of their first draw
    while len(words) < count:
        words["".join(rng.choice(_SYLLABLES, rng.integers(2, 4)))] = None
    return list(words)


_ALL = _words(400)
POSITIVE, NEGATIVE, NEUTRAL = _ALL[:25], _ALL[25:50], _ALL[50:150]
NEGATORS, INTENSIFIERS, CONTRAST, FILLERS = _ALL[150:153], _ALL[153:156], _ALL[156:158], _ALL[160:175]
SUBJECTS, VERBS, OBJECTS = _ALL[200:240], _ALL[240:280], _ALL[280:320]  # in each, word 2i and 2i + 1 are synonyms
_POLARITY = dict.fromkeys(POSITIVE, 1) | dict.fromkeys(NEGATIVE, -1)


def sentiment(words: list[str]) -> int:
    """The sum that decides a sentence's sentiment, by the rules above."""
    starts = [i + 1 for i, word in enumerate(words) if word in CONTRAST]
    total = 0
    for i, word in enumerate(words):
        if word in _POLARITY and not (starts and i < starts[-1]):
            total += _POLARITY[word] * (2 if i and words[i - 1] in INTENSIFIERS else 1)
    return -total if any(word in NEGATORS for word in words) else total


def _single(rng) -> tuple[tuple[str], int]:
    while True:
        words, mood = list(rng.choice(NEUTRAL, rng.integers(4, 9))), rng.random() < 0.5
        for _ in range(rng.integers(2, 5)):
            phrase = [rng.choice(POSITIVE if (rng.random() < 0.75) == mood else NEGATIVE)]
            if rng.random() < 0.25:
                phrase.insert(0, rng.choice(INTENSIFIERS))
            at = rng.integers(len(words) + 1)
            words[at:at] = phrase
        if rng.random() < 0.4:
            words.insert(rng.integers(len(words) + 1), rng.choice(NEGATORS))
        if rng.random() < 0.15:
            words.insert(rng.integers(2, len(words) - 1), rng.choice(CONTRAST))
        words = [str(word) for word in words]
        if 8 <= len(words) <= 16 and (total := sentiment(words)):
            return (" ".join(words),), int(total > 0)


def _synonym(words: list[str], word: str) -> str:
    return words[words.index(word) ^ 1]


def _maybe_synonym(rng, words, word):
    return _synonym(words, word) if rng.random() < 0.3 else word


def _pair(rng) -> tuple[tuple[str, str], int]:
    classes = (SUBJECTS, VERBS, OBJECTS)
    columns = [[words[2 * i + rng.integers(2)] for i in rng.permutation(len(words) // 2)[:4]] for words in classes]
    facts = list(zip(*(column[:3] for column in columns), strict=True))
    premise = " ".join(" ".join([*fact, str(rng.choice(FILLERS))]) for fact in facts)
    chosen = rng.integers(3)
    fact = list(facts[chosen])
    entailed = rng.random() < 0.5
    if not entailed:
        slot = rng.integers(3)
        other = 3 if rng.random() < 0.5 else (chosen + rng.integers(1, 3)) % 3
        fact[slot] = columns[slot][other]
    fact = [_maybe_synonym(rng, words, word) for words, word in zip(classes, fact, strict=True)]
    return (premise, " ".join(fact)), int(not entailed)


def _regression(rng) -> tuple[tuple[str, str], float]:
    pool = SUBJECTS + OBJECTS
    pairs = rng.permutation(len(pool) // 2)
    first = [pool[2 * i + rng.integers(2)] for i in pairs[:6]]
    kept = rng.integers(0, 7)
    synonyms = rng.integers(0, kept + 1)
    second = [_synonym(pool, word) if i < synonyms else word for i, word in enumerate(first[:kept])]
    second += [pool[2 * i + rng.integers(2)] for i in pairs[6 : 12 - kept]]
    score = 5 * (kept - synonyms / 2) / 6 + rng.normal(0, 0.15)
    sentences = (" ".join(str(word) for word in rng.permutation(words)) for words in (first, second))
    return tuple(sentences), float(np.clip(score, 0, 5))


def generate(task: str, size: int, seed) -> tuple[list[tuple[str, ...]], list]:
    """Generates examples of a task.

    Args:
      task: "single", "pair" or "regression".
      size: the number of examples.
      seed: whatever numpy.random.default_rng takes; equal seeds give equal corpora.
    Returns:
      (texts, labels), the texts of each example as a tuple.
    """
    rng = np.random.default_rng(seed)
    make = {"single": _single, "pair": _pair, "regression": _regression}[task]
    texts, labels = [], []
    for _ in range(size):
        text, label = make(rng)
        if task != "regression" and rng.random() < _NOISE:
            label = 1 - label
        texts.append(text)
        labels.append(label)
    return texts, labels
