import torch
from torch.distributions import Categorical, kl_divergence

from cfg_distill.metrics import Entropy, KLToTeacher


def test_means_over_cells_whatever_the_batches_and_the_padding():
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 6, 7, 11)
    mask = torch.rand(6, 7) < 0.6
    student_nan, teacher_nan = (z.masked_fill(~mask.unsqueeze(-1), torch.nan) for z in (student, teacher))
    p, q = Categorical(logits=student[mask]), Categorical(logits=teacher[mask])
    for sizes in ([6], [1, 5], [2, 2, 2]):
        entropy, kl = Entropy(), KLToTeacher()
        for s, t, m in zip(*(tensor.split(sizes) for tensor in (student_nan, teacher_nan, mask)), strict=True):
            entropy.update(s, m)
            kl.update(s, t, m)
        torch.testing.assert_close(entropy.compute(), p.entropy().mean())
        torch.testing.assert_close(kl.compute(), kl_divergence(p, q).mean())
