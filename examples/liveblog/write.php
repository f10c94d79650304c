<?php
/** The form of the blog's authors; apache.conf lets only them in. */
require 'apachews/autoload.php'; // of the package php-apachews

use function apachews\publish;

const SOCKET = '/var/www/html/liveblog/liveblog.ws';

$problem = '';
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    $text = trim($_POST['text'] ?? '');
    // A page of another site must not post with the author's login.
    $origin = parse_url($_SERVER['HTTP_ORIGIN'] ?? '', PHP_URL_HOST);
    if ($origin !== parse_url("//{$_SERVER['HTTP_HOST']}", PHP_URL_HOST)) {
        http_response_code(403);
        exit('Post from the form of this site.');
    }
    if ($text === '' || strlen($text) > 2000 || !preg_match('//u', $text)) {
        http_response_code(422);
        $problem = 'Write an entry of at most 2000 bytes.';
    } else {
        $entry = json_encode(['text' => $text, 'at' => time()], JSON_THROW_ON_ERROR);
        $delivery = publish(getenv('LIVEBLOG_SOCKET') ?: SOCKET, $entry, 'blog');
        header('Location: ?' . http_build_query(['readers' => $delivery->reached]), true, 303);
        exit;
    }
}
?>
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Write</title>
<h1>Write</h1>
<?php if (isset($_GET['readers'])): ?>
<p><?= (int) $_GET['readers'] ?> readers have it.
<?php endif ?>
<form method="post">
  <label>Entry <textarea name="text" maxlength="2000" required></textarea></label>
  <button>Publish</button>
  <?= htmlspecialchars($problem) ?>
</form>
