"""The passes over a Network before its nodes become kernels, in order."""

from __future__ import annotations

from collections.abc import Callable

from tvmcnn.fuse.clipped_integers import clipped_integers
from tvmcnn.fuse.composed_tables import composed_tables
from tvmcnn.fuse.dequantise_constants import dequantise_constants
from tvmcnn.fuse.drop_dead_taps import drop_dead_taps
from tvmcnn.fuse.exact_sums import exact_sums
from tvmcnn.fuse.fold_affine import fold_affine
from tvmcnn.fuse.integers import integers
from tvmcnn.fuse.multiply_spectra import multiply_spectra
from tvmcnn.fuse.rows_as_images import rows_as_images
from tvmcnn.fuse.sample_deformed import sample_deformed
from tvmcnn.fuse.separate_pools import separate_pools
from tvmcnn.fuse.spelled_gelu import spelled_gelu
from tvmcnn.fuse.split_transposed import split_transposed
from tvmcnn.fuse.turn_images import turn_images
from tvmcnn.fuse.volumes_as_frames import volumes_as_frames
from tvmcnn.network import Network

PASSES: tuple[Callable[[Network], Network], ...] = (
    integers,  # what stands between dequantised and quantised tensors  -->  integers
    clipped_integers,  # bounds of integers  -->  those of the kernel that makes them
    composed_tables,  # tables of tables, and what else depends on one byte  -->  one table
    dequantise_constants,  # integers that only float kernels read  -->  floats
    drop_dead_taps,  # filters whose outer taps meet padding alone  -->  smaller ones
    rows_as_images,  # a convolution of sequences, and what is made of it  -->  one of images of one row
    split_transposed,  # a transposed convolution whose windows touch  -->  a convolution and a shuffle of pixels
    volumes_as_frames,  # a convolution of volumes, and what is made of it  -->  one of a batch of frames
    separate_pools,  # a MaxPool by a large window  -->  one by its rows and one by its columns
    spelled_gelu,  # a GELU of five operators  -->  a Gelu
    sample_deformed,  # a deformable convolution  -->  samples and a convolution of them
    multiply_spectra,  # a Fourier transform  -->  a product with a constant matrix
    fold_affine,  # a scale or shift of maps  -->  part of the weight and bias before it
    turn_images,  # an image flattened and transposed  -->  transposed and flattened
)


def simplified(network: Network, *, in_bytes: bool = True, in_words: bool = False) -> Network:
    """The network after all passes: every rewrite keeps what it computes.

    `in_bytes` where the machine has kernels for convolutions of integers of 8 bits; `in_words` where these multiply
    words of four channels.
    """
    for rewrite in PASSES:
        network = rewrite(network)
    return exact_sums(network, in_bytes=in_bytes, in_words=in_words)
