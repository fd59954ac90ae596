"""What is logged of a student whatever its losses are: terms of cells that have no part in the loss."""

from __future__ import annotations

from cfg_distill.losses.chunked import CellTerm
from cfg_distill.losses.divergences import entropy_cells, reverse_kl_cells

ENTROPIES: dict[str, CellTerm] = {
    "entropy_student": lambda cells: entropy_cells(cells.student_log_probs_MV),
    "entropy_teacher": lambda cells: entropy_cells(cells.teacher_log_probs_MV),
}
"""Of student and guided teacher, in nats, one value per cell."""

DISTANCE: dict[str, CellTerm] = {
    "kl_per_token": lambda cells: reverse_kl_cells(cells.student_log_probs_MV, cells.teacher_log_probs_MV),
}
"""KL(student || guided teacher) in nats, one value per cell: how much of the guidance is still to be learnt."""
