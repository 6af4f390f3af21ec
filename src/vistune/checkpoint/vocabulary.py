"""Rows for the tokens that the Hugging Face layout adds to a vocabulary: `<image>`, `<pad>`, and filling up to a multiple of 64.

The model itself needs no row for `<image>` (image embeddings replace it), and neither does the original LLaVA; transformers does. So the
rows are made when a Hugging Face folder is written, and left out again when it is read back.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROW_MULTIPLE = 64
_COVARIANCE = 1e-5  # of the new rows, relative to the empirical covariance of the old ones (transformers' LLaVA converter)


def padded_rows(rows: int, highest_id: int) -> int:
    """How many rows a folder gets: as many as there are if `highest_id` has one, else up to it and to a multiple of 64."""
    if highest_id < rows:
        return rows
    return -(-(highest_id + 1) // ROW_MULTIPLE) * ROW_MULTIPLE


def with_new_rows(matrix: Tensor, rows: int) -> Tensor:
    """The matrix with rows appended, drawn around the mean of the old ones with a small part of their covariance.

    As transformers' converter does it, but the same for the same matrix every time: z·X / sqrt(n), with standard normal z and the centred
    old rows X, has exactly their covariance, and needs no [D, D] matrix. A vector (Phi's head has a bias) gets its mean.
    """
    missing = rows - matrix.shape[0]
    if missing <= 0:
        return matrix
    old = matrix.float()
    mean = old.mean(dim=0, keepdim=True)
    if matrix.dim() == 1:
        return torch.cat([matrix, mean.expand(missing).to(matrix.dtype)])
    generator = torch.Generator().manual_seed(missing)
    drawn = mean.repeat(missing, 1)
    for start in range(0, old.shape[0], 8192):  # in pieces: centring all at once would be another copy of the matrix
        centred = old[start : start + 8192] - mean
        z = torch.randn(missing, centred.shape[0], generator=generator)
        drawn += z @ centred * (_COVARIANCE / old.shape[0]) ** 0.5
    return torch.cat([matrix, drawn.to(matrix.dtype)])
