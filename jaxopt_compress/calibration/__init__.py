"""Calibration: what data, or the weights themselves, say before training."""

from jaxopt_compress.calibration.bias import correct_bias as correct_bias
from jaxopt_compress.calibration.equalization import equalize as equalize
from jaxopt_compress.calibration.equalization import fold_norms as fold_norms
from jaxopt_compress.calibration.ranges import calibrate as calibrate
from jaxopt_compress.calibration.trials import output_error as output_error
