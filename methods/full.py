"""Full fine-tuning: every parameter trains.

    theta <- AdamW(theta, dL/dtheta)

Tied weights (an embedding that is also the output layer) are one parameter and count once. Weights train in float32
whatever the base's precision: a bfloat16 weight of 0.02 loses most AdamW updates at a rate of 1e-5. The merged model
has the base's type again. Usual peak rates: 1e-5 to 5e-5.
"""

from dataclasses import dataclass, field

from torch import nn

from harness.contract import Method, Run, log_uniform

from ._linear import cast_back, train_all


@dataclass
class Full(Method):
    learning_rate: float = field(default=3e-4, metadata={"search": log_uniform(1e-6, 1e-2)})

    def attach(self, model: nn.Module, run: Run) -> None:
        self._dtypes = train_all(model)

    def merge(self, model: nn.Module) -> None:
        cast_back(model, self._dtypes)
