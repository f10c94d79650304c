<?php

declare(strict_types=1);

namespace apachews;

/**
 * How a connection is encrypted, between client and Apache.
 */
final class Tls
{
    /**
     * @param string      $version       as OpenSSL names it: TLSv1.3
     * @param string      $cipher        as OpenSSL names it: TLS_AES_256_GCM_SHA384
     * @param string|null $serverName    the host that the client asked for (SNI)
     * @param string|null $clientSubject subject of the client's certificate, where Apache
     *                                   has verified one (SSLVerifyClient)
     */
    public function __construct(
        public readonly string $version,
        public readonly string $cipher,
        public readonly ?string $serverName = null,
        public readonly ?string $clientSubject = null
    ) {
    }
}
