"""Runs in MLServer's environment: its own scikit-learn runtime, but for the file that the estimator is read from.

MLServer reads joblib files, which are pickles. The archive that this project stores beside each artifact has the same
estimator and runs no code when it is read.
"""

import skops.io
from mlserver_sklearn import SKLearnModel

_TRUSTED = ["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor", "sklearn.tree._tree.Tree"]
"""The nodes of trees, which skops reads only if they are named."""


class SkopsModel(SKLearnModel):
    """`parameters.uri` is the archive."""

    async def load(self) -> bool:
        self._model = skops.io.load(self.settings.parameters.uri, trusted=_TRUSTED)
        return True
