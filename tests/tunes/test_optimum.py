"""The weights of tests/optimum.py against the optimum of an enumerated model, found by gradient ascent."""

import pytest
import torch
from optimum import optimum
from torch import Tensor

GUIDED = torch.tensor([0.5, 0.25, 0.15, 0.1])
KERNEL = torch.tensor([[0.0, 0.2, 0.9, 1.0], [0.2, 0.0, 0.8, 0.3], [0.9, 0.8, 0.0, 0.4], [1.0, 0.3, 0.4, 0.0]])
NUMBER = 1200


def ascended(beta: float) -> Tensor:
    """The law that maximises beta pi' K pi - KL(pi || guided), by plain gradient ascent on its logits."""
    logits = GUIDED.log().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(1500):
        law = logits.softmax(-1)
        loss = (law * (law / GUIDED).log()).sum() - beta * law @ KERNEL @ law
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return logits.softmax(-1).detach()


@pytest.mark.slow
def test_weighted_samples_are_the_law_that_gradient_ascent_finds() -> None:
    outcome_N = torch.repeat_interleave(torch.arange(len(GUIDED)), (GUIDED * NUMBER).round().long())
    kernel_1NN = KERNEL[outcome_N][:, outcome_N].unsqueeze(0)
    values = {str(each): (outcome_N == each).float().unsqueeze(0) for each in range(len(GUIDED))}
    for beta in (0.0, 1.0, 2.0):
        found = optimum(kernel_1NN, beta, values, {"diversity": kernel_1NN})
        shares = torch.cat([found[name] for name in values])
        expected = ascended(beta)
        torch.testing.assert_close(shares, expected, atol=0.005, rtol=0)
        torch.testing.assert_close(found["diversity"][0], expected @ KERNEL @ expected, atol=0.005, rtol=0)
        kl = (expected * (expected / GUIDED).log()).sum()
        torch.testing.assert_close(found["KL"][0], kl, atol=0.005, rtol=0)
    assert abs(float(shares[0]) - float(GUIDED[0])) > 0.05  # a law that never moved would pass above
