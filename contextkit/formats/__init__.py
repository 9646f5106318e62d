"""Files of conversations: one module per format, and what turns their trees into contexts and forks."""

from contextkit.formats.exporting import export_file as export_file
from contextkit.formats.importing import FORMATS as FORMATS
from contextkit.formats.importing import import_file as import_file
