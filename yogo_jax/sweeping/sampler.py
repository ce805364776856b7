"""What a trial tries: Optuna's sampler, such that tasks that start at once do not try the same."""

import functools
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial


class TrialSeededSampler(BaseSampler):
    """TPE whose draws follow from a seed, the number of the trial, and the results known so far.

    One generator for all trials of a process would give every task of an array the same draws.

    References:
      Bergstra, Bardenet, Bengio, Kégl 2011, Algorithms for hyper-parameter optimization, NIPS 24.
    """

    def __init__(self, seed: int, *, random_trials: int) -> None:
        self._seed = seed
        self._random_trials = random_trials
        self._of_number = functools.lru_cache(maxsize=8)(self._make)

    def _make(self, number: int) -> TPESampler:
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        # What others work on counts as bad (Optuna's "constant liar"), so that they spread.
        return TPESampler(seed=seed, n_startup_trials=self._random_trials, constant_liar=True)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict:
        """What is drawn together."""
        return self._of_number(trial.number).infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict) -> dict:
        """Values of what is drawn together."""
        return self._of_number(trial.number).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """The value of one parameter."""
        sampler = self._of_number(trial.number)
        return sampler.sample_independent(study, trial, param_name, param_distribution)
