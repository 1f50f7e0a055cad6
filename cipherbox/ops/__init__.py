"""Operations: what keeps a running HQ observable.

    logs       JSON lines on standard error and, when asked, in rotated files
    systemd    READY and STOPPING
"""
