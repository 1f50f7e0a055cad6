"""Content types of files by name, as laboratories use them, identical on every system.

Python's own table is that of the web: there `.vcf` is a business card, and the compression is
separate from the type.
"""

from __future__ import annotations

import mimetypes
from pathlib import PurePath

from cipherbox.sealing.body import BINARY

_FIELD = {
    ".dcm": "application/dicom",
    ".dicom": "application/dicom",  # RFC 3240
    ".hl7": "application/hl7-v2",
    ".fhir": "application/fhir+json",
    ".cda": "application/hl7-cda+xml",
    ".vcf": "text/x-vcf",
    ".bcf": "application/x-bcf",
    ".gvcf": "text/x-vcf",
    ".maf": "text/x-maf",
    ".fastq": "text/x-fastq",
    ".fq": "text/x-fastq",
    ".fasta": "text/x-fasta",
    ".fa": "text/x-fasta",
    ".fna": "text/x-fasta",
    ".faa": "text/x-fasta",
    ".sam": "text/x-sam",
    ".bam": "application/x-bam",
    ".cram": "application/x-cram",
    ".bed": "text/x-bed",
    ".gff": "text/x-gff3",
    ".gff3": "text/x-gff3",
    ".gtf": "text/x-gtf",
    ".gb": "text/x-genbank",
    ".pdb": "chemical/x-pdb",
    ".mol": "chemical/x-mdl-molfile",
    ".mzml": "application/x-mzml+xml",
    ".mzxml": "application/x-mzxml+xml",
    ".mgf": "text/x-mgf",
    ".nii": "application/x-nifti",
    ".mnc": "application/x-minc",
    ".edf": "application/x-edf",
    ".fcs": "application/vnd.isac.fcs",
    ".h5": "application/x-hdf5",
    ".hdf5": "application/x-hdf5",
    ".h5ad": "application/x-hdf5",
    ".nc": "application/x-netcdf",
    ".parquet": "application/vnd.apache.parquet",
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".jsonl": "application/jsonl",
    ".ndjson": "application/x-ndjson",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".md": "text/markdown",
    ".svs": "image/x-aperio-svs",
    ".czi": "image/x-zeiss-czi",
    ".nd2": "image/x-nikon-nd2",
}
_PACKED = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
    "br": "application/x-brotli",
}
_PACKED_BY_NAME = {
    ".zst": "application/zstd",
    ".bgz": "application/gzip",
    ".lz4": "application/x-lz4",
}


def guess_type(path: PurePath) -> str:
    """Return the content type for a file's name; a compressed file has its compression's type, an
    unknown one is binary.
    """
    suffix = path.suffix.lower()
    found = _FIELD.get(suffix) or _PACKED_BY_NAME.get(suffix)
    if found:
        return found
    known, packed = mimetypes.MimeTypes(()).guess_type(path.name)
    if packed is not None:
        return _PACKED.get(packed, BINARY)
    return known or BINARY
