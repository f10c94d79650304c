<?php

declare(strict_types=1);

namespace apachews\Tests;

/**
 * A directory for a test's socket files, with a short path.
 */
final class Directory
{
    public readonly string $path;

    public function __construct()
    {
        $this->path = sys_get_temp_dir() . '/aws' . bin2hex(random_bytes(4));
        mkdir($this->path, 0755);
    }

    public function __destruct()
    {
        foreach (scandir($this->path) ?: [] as $name) {
            if ($name !== '.' && $name !== '..') {
                @unlink("$this->path/$name");
            }
        }
        rmdir($this->path);
    }
}
