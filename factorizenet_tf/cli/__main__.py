"""`python -m factorizenet_tf.cli`."""

import sys

from . import main

sys.exit(main())
