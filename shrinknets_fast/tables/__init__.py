"""Networks that size themselves for tables: what ``sn.sklearn`` and ``python -m shrinknets_fast fit`` stand on."""
