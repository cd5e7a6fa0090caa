"""Results and drafts in other programs' files."""

from __future__ import annotations

from selfspec_tune.callable_package import make_callable
from selfspec_tune.export.skip_files import export_dialect, known_num_layers
from selfspec_tune.export.spec_bench import write_spec_bench
from selfspec_tune.export.tables import write_csv, write_parquet
from selfspec_tune.export.write import export

__all__ = ["export", "export_dialect", "known_num_layers", "write_csv", "write_parquet", "write_spec_bench"]

make_callable(__name__, export)
