"""What this home sends: kept on its disk, sent until HQ has it, kept until recipients have
signed.
"""
