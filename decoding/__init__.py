"""Files to samples: PNG, JPEG, TIFF and BMP, each read exactly or refused by name.

Every decoder takes an open file and gives a `Raster`; what its samples look like is decided above (`images`).
Damage that the format lets one see (a checksum, a length, a missing part, a warning of the decoder's) is an
error: a picture that is half there is no picture.
"""

from .files import raster_of_file
from .pillow import blocks, pixels_of
from .raster import Raster, check_sides

__all__ = ["Raster", "blocks", "check_sides", "pixels_of", "raster_of_file"]
