"""Muon against torch's own for matrices, and what makes it orthogonal."""

import pytest
import torch

from cascade.stages.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shapes", [[(8, 20)], [(20, 8), (20, 8), (6, 6)]])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_on_matrices_it_is_that_of_torch(shapes, decay):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(weight.detach().clone()) for weight in ours]
    own = Muon(ours, decay)
    others = torch.optim.Muon(theirs, lr=0.02, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    own.param_groups[0]["lr"] = torch.tensor(0.02)
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        own.step()
        others.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-4)  # bfloat16 iterations of steps of 0.004 an entry


def test_a_kernel_is_a_matrix_with_a_row_per_output_whatever_its_layout():
    torch.manual_seed(0)
    kernel, gradient = torch.randn(8, 5, 3, 3), torch.randn(8, 5, 3, 3)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = torch.nn.Parameter(kernel.clone(memory_format=layout))
        own = Muon([weight])
        own.param_groups[0]["lr"] = 1.0
        weight.grad = gradient.clone()  # in another layout than the weight's, once
        own.step()
        found.append((weight.detach() - kernel).flatten(1))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0.02)
    step = found[0] / -(0.2 * 45**0.5)
    torch.testing.assert_close(step @ step.T, torch.eye(8), rtol=0, atol=0.7)  # rows nearly orthonormal


def test_singular_values_move_to_one_and_vectors_stay():
    torch.manual_seed(0)
    matrix = torch.randn(3, 12, 30)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    for made, left, right in ((orthogonal(matrix), u, vh), (orthogonal(matrix.mT).mT, u, vh)):
        core = left.mT @ made.float() @ right.mT
        diagonal = core.diagonal(dim1=1, dim2=2)
        assert diagonal.min() > 0.6 and diagonal.max() < 1.3 and s.max() / s.min() > 2
        assert (core - torch.diag_embed(diagonal)).abs().max() < 0.1
