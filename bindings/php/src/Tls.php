<?php

declare(strict_types=1);

namespace apachews;

/**
 * The encryption between client and Apache.
 */
final class Tls
{
    /**
     * @param string      $version       OpenSSL's name, such as TLSv1.3
     * @param string      $cipher        OpenSSL's name, such as TLS_AES_256_GCM_SHA384
     * @param string|null $serverName    the host that the client requested (SNI)
     * @param string|null $clientSubject subject of the client's certificate, if Apache
     *                                   verified one (SSLVerifyClient)
     */
    public function __construct(
        public readonly string $version,
        public readonly string $cipher,
        public readonly ?string $serverName = null,
        public readonly ?string $clientSubject = null
    ) {
    }
}
