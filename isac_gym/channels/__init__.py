"""Channel models: who draws the channels, in which order.

A model draws arrays of shape (n, J, J, K, M): n realisations of the channels from station i to
user k of cell j, each row [f, g] with the M_R radar antennas first. It draws from the generator
that it is given and keeps no state of its own, so one object serves any number of environments.

With a layout that has distances, an episode begins with the positions of its users and the gains of
the paths (:mod:`isac_gym.channels.placement`), drawn before the channels from the same generator.

Order of the draws of channels: the whole array at once, in C order, real and imaginary part of an
entry next to each other. A batch of n environments and n draws for one environment therefore use up
the generator alike, but hand the numbers to different blocks.
"""

from isac_gym.channels.base import ChannelModel, Complex, Deployment
from isac_gym.channels.gauss_markov import GaussMarkovChannel
from isac_gym.channels.held import HeldChannels
from isac_gym.channels.rayleigh import RayleighChannel
from isac_gym.channels.recorded import FileChannels
from isac_gym.channels.rician import RicianChannel

__all__ = [
    "ChannelModel",
    "Complex",
    "Deployment",
    "FileChannels",
    "GaussMarkovChannel",
    "HeldChannels",
    "RayleighChannel",
    "RicianChannel",
]
