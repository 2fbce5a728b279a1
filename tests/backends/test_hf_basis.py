import builtins

import numpy as np
import pytest

torch = pytest.importorskip("torch")
optimize = pytest.importorskip("scipy.optimize")
pytest.importorskip("transformers")

from drawing import choose, frequencies, misfit, normal  # noqa: E402  (after the checks)

from branchwise.backends.hf import basis  # noqa: E402  (as above)
from branchwise.backends.hf.sampler import check, probabilities  # noqa: E402  (as above)
from branchwise.core.config import Sampling  # noqa: E402  (as above)
from branchwise.core.errors import SpecError  # noqa: E402  (as above)


def kept(logits, embedding, **fields):
    choice = choose(Sampling(basis_cutoff=0.05, **fields), embedding=embedding)
    return (probabilities(logits, choice)[0] > 0).tolist()


def by_definition(logits, embedding, cutoff, size):
    """One program for each token: may a truth that agrees with the model do without it?"""
    p = logits[0].double().softmax(-1).numpy()
    w = embedding.double().numpy()
    _, _, directions = np.linalg.svd(w, full_matrices=False)
    w = w @ directions[:size].T
    limits = np.array([[0, x / (1 - cutoff)] for x in p])
    found = []
    for token in range(len(p)):
        bounds = limits.copy()
        bounds[token, 1] = 0
        program = optimize.linprog(
            np.zeros(len(p)),
            A_eq=np.vstack([w.T, np.ones(len(p))]),
            b_eq=[*(w.T @ p), 1],
            bounds=bounds,
        )
        found.append(bool(p[token] >= cutoff or p[token] == p.max() or program.status == 2))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1, 3, 6])
def test_keeps_what_one_program_for_each_token_certifies(seed, size):
    logits, embedding = normal(1, 24, seed, spread=1.5), normal(24, 6, seed + 10, spread=1.0)
    expected = by_definition(logits, embedding, 0.05, size)
    assert kept(logits, embedding, basis_size=size) == expected
    certain = (logits.softmax(-1)[0] >= 0.05).tolist()
    assert sum(expected) >= sum(certain)


def test_certifies_more_than_the_threshold_where_a_token_stands_alone():
    # The last token alone points where it does, so no truth of the others can make up for it.
    embedding = torch.zeros(30, 2)
    embedding[:, 0], embedding[-1, 1] = normal(1, 30)[0], 5.0
    logits = torch.zeros(1, 30)
    logits[0, :3], logits[0, -1] = 4.0, 0.5
    assert kept(logits, embedding)[-1]
    assert not any(kept(logits, embedding)[3:-1])


def test_a_matrix_of_full_rank_keeps_every_token():
    assert all(kept(normal(1, 20), torch.eye(20) + 0.1 * normal(20, 20), basis_size=20))


def test_a_matrix_of_zeros_certifies_none_beyond_the_threshold():
    logits = normal(1, 40)
    found = kept(logits, torch.zeros(40, 4))
    assert found == (logits.softmax(-1)[0] >= 0.05).tolist()


def test_fewer_directions_certify_no_other_tokens():
    logits, embedding = normal(1, 24, spread=1.5), normal(24, 12, 1)
    few, many = (kept(logits, embedding, basis_size=size) for size in (4, 12))
    assert all(b for a, b in zip(few, many, strict=True) if a)
    assert sum(few) < sum(many)


def test_a_tail_that_is_not_looked_at_certifies_no_other_tokens(monkeypatch):
    logits, embedding = normal(1, 60, spread=3.0), normal(60, 20, 1)
    whole = kept(logits, embedding, basis_size=20)
    monkeypatch.setattr(basis, "_HEAD", 40)
    most = kept(logits, embedding, basis_size=20)
    assert all(b for a, b in zip(most, whole, strict=True) if a)
    assert sum(logits[0].softmax(-1) >= 0.05) < sum(most) <= sum(whole)


def test_looks_at_the_models_own_distribution_wherever_it_stands():
    logits, embedding = normal(1, 24, spread=1.5), normal(24, 6, 1)
    alone = kept(logits, embedding, basis_size=6)
    hot = kept(logits, embedding, basis_size=6, temperature=3.0, top_k=9)
    largest = set(logits[0].topk(9).indices.tolist())
    assert hot == [a and token in largest for token, a in enumerate(alone)]


def test_draws_what_it_keeps():
    logits, embedding = normal(1, 24, spread=1.5), normal(24, 6, 1)
    how = Sampling(basis_cutoff=0.05, basis_size=6)
    expected = probabilities(logits, choose(how, embedding=embedding))[0]
    assert misfit(frequencies(logits, how, draws=40, embedding=embedding), expected) < 0


def test_says_what_is_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    how = Sampling(basis_cutoff=0.05)
    check(how, 24, normal(24, 6))
    with pytest.raises(SpecError, match="output matrix"):
        check(how, 24)
    with pytest.raises(SpecError, match="output matrix"):
        probabilities(normal(1, 24), choose(how))
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SpecError, match=r"needs scipy \(pip install 'branchwise\[basis\]'\)"):
        probabilities(normal(1, 24), choose(how, embedding=normal(24, 6)))
    with pytest.raises(SpecError, match="needs scipy"):
        check(how, 24, normal(24, 6))
