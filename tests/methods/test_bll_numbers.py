"""BLL on targets that are numbers: its objective written out, and what it refuses.

B batch, D numbers to predict, N latents of a block.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.core.block import Chain
from sidestep.core.cut import CutPlan
from sidestep.core.task import Regression
from sidestep.engines.streaming import Streaming
from sidestep.methods.bll import BLL
from sidestep.nn.latents import Latents
from sidestep.nn.twins import Twin
from tests.conftest import adam, sgd

NUMBERS = 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [part for _ in range(2) for part in (nn.Linear(5, 5), nn.Tanh())]
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), *hidden, nn.Linear(5, 2 * NUMBERS))


def data(n: int = 16) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=g), torch.randn(n, NUMBERS, generator=g)


def engine(method: BLL) -> Streaming:
    task = Regression(torch.Size([NUMBERS]), data()[0][:2])
    torch.manual_seed(1)
    return Streaming(method, method.build(net(), task, CutPlan(blocks=3)), task, sgd())


def objective(chain: Chain, x: Tensor, y: Tensor, m: float, w: float) -> Tensor:
    """Bernoulli latents, mlp twin, plug-in: the sum of all F_k in nats a number, from the equations."""
    messages: list[Tensor] = []
    state = y
    for block in reversed(chain.blocks):
        twin = block.extras["twin"]
        assert isinstance(twin, Twin)
        state = twin.step(state.detach())
        b = twin.say(state)
        messages.insert(0, b - b.mean(0))
    total, h = torch.zeros(()), x
    for block, b in zip(chain.blocks, messages, strict=True):
        latents = block.extras["latents"]
        assert isinstance(latents, Latents)
        a = block.net(h.detach())
        alpha, rho = a.sigmoid(), (a + m * b).sigmoid()
        kl = (rho * (rho / alpha).log() + (1 - rho) * ((1 - rho) / (1 - alpha)).log()).sum(1)
        mean, log_precision = block.extras["lift"](rho).chunk(2, 1)
        miss = -torch.distributions.Normal(mean, (-0.5 * log_precision).exp()).log_prob(y).sum(1)
        total = total + (w * kl + miss).mean() / NUMBERS
        h = alpha
    return total


def test_gradients_are_those_of_the_objective_written_out() -> None:
    """Tolerance: sums over latents and samples are taken in another order, some 1e-6 relative in float32."""
    made = engine(BLL(family="bernoulli", m=0.7, kl_weight=0.3, likelihood="plug-in"))
    x, y = data()
    found = made.gradients((x, y))
    parameters = dict(made.chain.named_parameters())
    expected = torch.autograd.grad(objective(made.chain, x, y, 0.7, 0.3), list(parameters.values()))
    assert found.keys() == parameters.keys()
    for (name, gradient), naive in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(gradient, naive, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("draws", [0, 3])
def test_the_answer_needs_no_target_and_is_what_is_exported(draws: int) -> None:
    made = engine(BLL(family="gaussian", likelihood="sample", draws=draws))
    x, y = data()
    made.step((x, y))
    answers = made.predict(x)
    assert all(a is not None and a.shape == (16, 2 * NUMBERS) for a in answers)
    exported = made.method.export(made.inference_chain).eval()
    assert answers[-1] is not None
    with torch.no_grad():
        assert torch.equal(exported(x), answers[-1])


def test_a_precision_that_is_learnt_is_that_of_the_errors() -> None:
    """y = x + noise of deviation 0.5, which no network can predict; the latents lose a little of x.

    For six pairs of seeds, of data and of samples, deviations were 0.536 to 0.542, and within 2 % of the errors'.
    """
    g = torch.Generator().manual_seed(2)
    x = torch.randn(4000, 4, generator=g)
    y = x[:, :NUMBERS] + 0.5 * torch.randn(4000, NUMBERS, generator=g)
    made = engine(BLL(family="gaussian", likelihood="sample", m=0.5))
    wide = Streaming(made.method, made.chain, made.task, adam(1e-2))
    for step in range(600):
        part = slice(200 * (step % 20), 200 * (step % 20) + 200)
        wide.step((x[part], y[part]))
    answer = wide.predict(x)[-1]
    assert answer is not None
    mean, log_precision = answer.chunk(2, 1)
    deviation = (-0.5 * log_precision).exp().mean().item()
    assert 0.5 < deviation < 0.56
    assert deviation == pytest.approx((y - mean).square().mean().sqrt().item(), rel=0.04)
    assert wide.task.loss(answer, y).item() < 0.5 * math.log(2 * math.pi) + 0.5 + math.log(0.56)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (BLL(likelihood="closed"), "got likelihood='closed' for targets that are numbers"),
        (BLL(detach="both"), "got detach='both' for targets that are numbers"),
        (BLL(read_out="lifted"), "got read_out=lifted with targets that are numbers, which does not read it"),
        (BLL(label_smoothing=0.1), r"got label_smoothing=0\.1 with targets that are numbers, which does not"),
        (BLL(centre="classes"), "got centre=classes with targets that are numbers, which does not read it"),
        (BLL(draws=2, likelihood="plug-in"), "got draws and likelihood='plug-in' with a read-out that is a network"),
        (BLL(head="linear", head_width=64), "got head_width=64 with head='linear', which does not read it"),
    ],
)
def test_what_is_of_classes_only_is_refused_when_it_is_built(method: BLL, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine(method)


def test_one_sample_alone_is_refused_where_it_could_say_nothing() -> None:
    x, y = data()
    made = engine(BLL(m=0.5))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with pytest.raises(ValueError, match=r"got one sample in a micro-batch, .* less the micro-batch's mean"):
        made.step((x[:1], y[:1]))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert engine(BLL(m=0.0)).step((x[:1], y[:1])).loss.isfinite().all()


def test_messages_are_centred_over_the_batch() -> None:
    made = engine(BLL(family="bernoulli"))
    twin = made.chain.blocks[-1].extras["twin"]
    assert isinstance(twin, Twin) and twin.classes == 0
    said = twin.messages(twin(data()[1]))
    assert said.shape == (16, 1, 5)
    torch.testing.assert_close(said.mean(0), torch.zeros(1, 5), atol=1e-6, rtol=0)  # rounding of a mean
    assert F.mse_loss(said, torch.zeros_like(said)) > 0
