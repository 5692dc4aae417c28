"""Running the result, without torch: :class:`Encoder`. Needs the extra ``inference``."""

from spatile.inference.encoder import Encoded, Encoder
from spatile.inference.explain import Explanation
from spatile.inference.head import Predictions
from spatile.inference.summary import Summary

__all__ = ["Encoded", "Encoder", "Explanation", "Predictions", "Summary"]
